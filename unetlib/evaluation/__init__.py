"""Evaluation of a run.

Takes a run, and patients whom it has not seen; gives the scores of each slice and patient, and one table.
"""
