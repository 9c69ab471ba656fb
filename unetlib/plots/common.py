"""What every figure shares: colours, a slice with its masks, a small file.

The colours are those of Okabe and Ito (2008), which colour-blind people can tell apart.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from PIL import Image

from unetlib.files import atomic
from unetlib.volumes import Volume

TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, OUTLINE = "#009E73", "#D55E00", "#56B4E9", "#F0E442"
KEPT, VIVID = (TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, OUTLINE), 168  # of the 256 colours of a picture
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#7F7F7F"  # training, validation, what is for comparison only
DISCLAIMER = "for research and education, never for clinical use"


def to_png(figure: Figure, dpi: int = 100) -> bytes:
    """Return a figure as PNG of at most 256 colours: a third of the size, and no difference to the eye.

    The colours of a legend are kept, greys and others have a share each: MRI has so many greys that the few pixels of
    a legend would drift.
    """
    buffer, small = BytesIO(), BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    pixels = np.asarray(Image.open(buffer).convert("RGB"))
    kept = [(pixels == [round(255 * part) for part in to_rgb(colour)]).all(-1) for colour in KEPT]
    others, vivid = ~np.any(kept, axis=0), np.ptp(pixels, axis=-1) > 16
    shares = [(share, 1) for share in kept] + [(others & vivid, VIVID), (others & ~vivid, 256 - len(KEPT) - VIVID)]
    image, colours = np.zeros(pixels.shape[:2], np.uint8), list[int]()
    for share, number in shares:
        if share.any():
            own = Image.fromarray(pixels[share][None]).quantize(number)
            image[share] = np.asarray(own)[0] + len(colours) // 3
            colours += (own.getpalette() or [])[: 3 * number]
    result = Image.fromarray(image)
    result.putpalette(colours)
    result.save(small, "png", optimize=True)
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
