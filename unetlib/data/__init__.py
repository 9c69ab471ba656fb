"""From a folder of NIfTI files to prepared slices, split by patient.

It takes a folder in any known layout, or its tar. It gives cases, volumes in LPS order, and memory-mapped slices.
"""
