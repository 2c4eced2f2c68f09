"""Measurements of fedsparse; what a file measures and how it is called stands at its top."""
