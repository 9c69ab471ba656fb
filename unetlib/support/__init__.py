"""Errors, files, processes, signals and random order: what every room needs and none teaches.

It takes paths, functions and seeds. It gives files that are whole or absent, work in several processes, and sentences.
"""
