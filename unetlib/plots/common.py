"""What every figure shares: colours, a slice with its masks, a small file.

The colours are those of Okabe and Ito (2008), which colour-blind people can tell apart.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from unetlib.files import atomic
from unetlib.volumes import Volume

TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, OUTLINE = "#009E73", "#D55E00", "#56B4E9", "#F0E442"
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#7F7F7F"  # training, validation, what is for comparison only
DISCLAIMER = "for research and education, never for clinical use"


def to_png(figure: Figure, dpi: int = 100) -> bytes:
    """Return a figure as PNG of at most 256 colours: a third of the size, and no difference to the eye."""
    buffer, small = BytesIO(), BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(to_png(figure, dpi=120))


def show_slice(axes: Axes, image: np.ndarray) -> None:
    """Show a slice (H, W) in grey, windowed to its 0.5 and 99.5 percentiles, without ticks."""
    low, high = np.percentile(image, (0.5, 99.5))
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6))
    axes.set(xticks=[], yticks=[])


def draw_outline(axes: Axes, mask: np.ndarray) -> None:
    """Draw the border of a boolean mask (H, W); nothing where it is empty."""
    if mask.any():
        axes.contour(mask, levels=[0.5], colors=OUTLINE, linewidths=1.2)


def draw_errors(axes: Axes, truth: np.ndarray, prediction: np.ndarray) -> None:
    """Colour where two boolean masks (H, W) agree on tumour, and where one of them is wrong."""
    for mask, colour in (
        (truth & prediction, TRUE_POSITIVE),
        (~truth & prediction, FALSE_POSITIVE),
        (truth & ~prediction, FALSE_NEGATIVE),
    ):
        axes.imshow(mask[..., None] * np.array(to_rgba(colour, 0.65)), interpolation="nearest")


def largest_slice(mask: np.ndarray) -> int:
    """Return the z of the axial slice of a mask (X, Y, Z) that holds most tumour."""
    return int(mask.sum((0, 1)).argmax())


def is_synthetic(volume: Volume) -> bool:
    """Tell whether a volume's header marks it as made by `unetlib phantom`."""
    return b"SYNTHETIC" in volume.header["descrip"].tobytes()
