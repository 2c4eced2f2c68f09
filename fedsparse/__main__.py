"""`python -m fedsparse` is the command `fedsparse`."""

import sys

from fedsparse.cli import main

sys.exit(main())
