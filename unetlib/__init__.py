"""Segment brain tumours on MRI with a U-Net: the library behind the course.

For research and education only. Not a medical device; never for clinical use.
"""

from unetlib.support.version import __version__

TYPE_CHECKING = False  # as in `typing`, which would take milliseconds in which a Ctrl-C is a traceback
if TYPE_CHECKING:
    from unetlib.show import plots
    from unetlib.show.viewer import SliceViewer

__all__ = ["SliceViewer", "__version__", "plots"]


def __getattr__(name: str) -> object:
    """Load viewer and figures when they are asked for: the command line does without their imports."""
    if name == "plots":
        from unetlib.show import plots

        return plots
    if name == "SliceViewer":
        from unetlib.show.viewer import SliceViewer

        return SliceViewer
    raise AttributeError(f"module 'unetlib' has no attribute {name!r}")
