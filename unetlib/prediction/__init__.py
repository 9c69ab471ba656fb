"""From the weights of a run to a mask.

Takes a run and volumes; gives probabilities, and masks on the grid of each volume.
"""
