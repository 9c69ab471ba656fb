"""The folder of a run: resumable training, checkpoints, and provenance.

Takes prepared slices and a recipe; gives weights, a history and a record of their origin.
"""
