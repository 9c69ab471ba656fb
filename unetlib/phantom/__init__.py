"""A synthetic cohort with real anatomy and invented tumours.

It takes a seed and a number of patients. It gives a folder in BraTS 2021 layout.
"""
