"""What a run is worth.

It takes a run, and patients whom it has not seen. It gives the scores of each slice and patient, and one table.
"""
