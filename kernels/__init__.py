"""Kernels compiled just in time (Triton), one file an op family; installed as `fedsparse.kernels`.

They are plain functions of tensors and import nothing of fedsparse; `fedsparse.ops` decides when they run.
Importing this package does not import triton, importing one of its modules does.
"""
