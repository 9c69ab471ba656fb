"""What a chapter starts with, and the chapters as executed notebooks and pages.

It takes a folder of patients, or none. It gives the names that a notebook uses, and pages; it has no logic of its own.
"""
