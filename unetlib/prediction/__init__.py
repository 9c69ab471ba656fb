"""From the weights of a run to a mask.

It takes a run and volumes. It gives probabilities, masks on the grid of each volume, and the decision between the two.
"""
