"""The folder of a run: training that can be stopped, its checkpoints, and where it comes from.

It takes prepared slices and a recipe. It gives weights, a history and a record.
"""
