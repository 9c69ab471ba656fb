"""What a person looks at: the viewer, figures, and the model card.

It takes volumes, masks, runs and scores. It gives pictures and pages, and decides nothing.
"""
