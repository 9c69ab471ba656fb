"""Segment brain tumours on MRI with a U-Net: the library behind the course.

For research and education only. Not a medical device; never for clinical use.
"""

__version__ = "0.1.0"
