"""What a person looks at: the viewer, figures, and the model card.

It takes volumes, masks, runs and scores, and gives images and pages.
"""
