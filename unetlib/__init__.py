"""Segment brain tumours on MRI with a U-Net: the library behind the course.

For research and education only. Not a medical device; never for clinical use.
"""

TYPE_CHECKING = False  # as in `typing`, which would take milliseconds in which a Ctrl-C is a traceback
if TYPE_CHECKING:
    from unetlib.viewer import SliceViewer

__version__ = "0.4.0"
__all__ = ["SliceViewer"]


def __getattr__(name: str) -> object:
    """Load the viewer when it is asked for: the command line does without its imports."""
    if name != "SliceViewer":
        raise AttributeError(f"module 'unetlib' has no attribute {name!r}")
    from unetlib.viewer import SliceViewer

    return SliceViewer
