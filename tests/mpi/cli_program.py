"""The command `fedsparse` on ranks that all get a client in every round, so that a fault that is ordered happens."""

import sys

from rank_program import everyone_gets_a_client

from fedsparse.cli import main

if __name__ == "__main__":
    with everyone_gets_a_client():
        code = main()
    sys.exit(code)
