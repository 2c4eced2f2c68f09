"""What `python -m benchmarks.gpu_check` measures on a GPU, one module a section.

A section is a list of cases, most important first, and runs in a process of its own. It needs torch and, for the
networks and ops, fedsparse; it imports neither the command line nor the configuration.
"""
