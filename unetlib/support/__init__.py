"""Utilities for all packages: errors, messages, files, processes, signals and random numbers.

Takes paths, functions and seeds; gives atomic files, work in several processes, and error messages.
"""
