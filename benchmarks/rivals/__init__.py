"""The same tasks in other engines; these files import nothing of fedsparse and run in an environment of their own."""
