"""Look at volumes slice by slice in a notebook, with the masks of an expert and of a network.

`viewer.js` draws the images in the browser. It asks once for the voxels with the message `{kind: "ready"}` and gets one
message `{kind: "data", ...}` with the voxels as binary buffers: a key press then needs no answer from Python, and a
saved notebook holds no voxels. Only the small traits (`position`, `window`, ...) are synchronised.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from unetlib.show import embedded
from unetlib.show.framing import frames
from unetlib.show.layers import Given, Layers
from unetlib.show.panels import AXIS, LETTERS, Images, Masks, Panel, encode, middle, read_panels
from unetlib.show.plots.common import DISCLAIMER
from unetlib.show.still import draw_still, show_still_at_end, watch_notebook
from unetlib.support.errors import UnetlibError, first_of
from unetlib.support.files import atomic
from unetlib.support.paths import takes_paths

LEVELS = (256, 128, 64, 32)  # of the window, where exact intensities do not fit into a page
EXPECTED = {
    "position": (3, "a voxel (x, y, z)"),
    "window": (2, "(low, high), low below high,"),
    "opacity": (1, "a number from 0 to 1"),
}


class Checked(traitlets.Any):
    """A trait that leaves everything, `None` too, to the viewer's own check."""

    allow_none = False


class SliceViewer(anywidget.AnyWidget):
    """Volumes in axial, coronal and sagittal slices, with reference and prediction, in a notebook.

    `volume`: the path of a NIfTI file, a nibabel image, a `Source`, a `Volume`, or an array (X, Y, Z)
    in LPS order; a list or a dict (name: volume) shows several side by side, linked by millimetres.
    `truth`, `prediction`: masks of the same kinds, labels 0..255 or bool; one for all volumes, or a
    list or dict like that of the volumes. A mask on another grid is resampled through the affines.
    `affine`: (4, 4), voxel to millimetres, of volumes that are arrays; 1 mm where not given.
    `regions`: what the masks consist of, each with a name and a colour: a dict of up to 8 names and their labels, such
    as {"necrosis": 1, "oedema": 2, "enhancing": 4} or {"whole": None, "core": (1, 4)} (`None`: all labels), or a
    sequence of names for masks that are arrays (regions, X, Y, Z). By default all labels are one region.

    Traits, kept in step with the browser:

    - `position` (x, y, z): the voxel of the first volume, in LPS order; clipped to the volume;
    - `window` (low, high): the intensities shown black and white in the first volume; the others
      follow in proportion;
    - `opacity` of the overlay, 0..1;
    - `plane`: "axial", "coronal" or "sagittal", what the slider and the arrow keys move through;
    - `show`: "none", "truth" (the reference), "prediction", "both" or "errors"; with `regions`, the errors of one of
      them, such as "errors: core";
    - `style`: "fill" or "outline". Of `regions` in "both", "fill" fills the prediction and outlines the reference.

    Raises `UnetlibError` when a volume or mask cannot be read or does not fit, or a trait cannot
    have the value. For research and education, never for clinical use.
    """

    _esm, _css = embedded.SCRIPT, embedded.STYLE
    title = traitlets.Unicode().tag(sync=True)
    position = Checked().tag(sync=True)
    window = Checked().tag(sync=True)
    opacity = Checked().tag(sync=True)
    plane = Checked().tag(sync=True)
    show = Checked().tag(sync=True)
    style = Checked().tag(sync=True)

    def __init__(
        self,
        volume: Images,
        truth: Masks = None,
        prediction: Masks = None,
        *,
        affine: np.ndarray | None = None,
        regions: Given = None,
        title: str = "",
        position: Sequence[int] | None = None,
        window: Sequence[float] | None = None,
        opacity: float = 0.5,
        plane: str = "axial",
        show: str | None = None,
        style: str | None = None,
    ) -> None:
        self.regions = Layers.of(regions)
        self.panels, self.notes = read_panels(volume, truth, prediction, affine, self.regions)
        self.frames = frames(self.panels)
        masks = [kind for kind in ("truth", "prediction") if any(getattr(one, kind) is not None for one in self.panels)]
        shown = self.regions.choices(masks)
        most = "both" if self.regions and len(masks) == 2 else shown[-1]
        self._choices = {"plane": list(AXIS), "show": shown, "style": ["fill", "outline"]}
        values = {
            "position": middle(self.panels) if position is None else position,
            "window": self.panels[0].window if window is None else window,
            "opacity": opacity,
            "plane": plane,
            "show": most if show is None else show,
            "style": ("outline" if self.regions.overlap else "fill") if style is None else style,
        }
        self._start = {name: self._checked(name, value) for name, value in values.items()}
        super().__init__(title=title or first_of([panel.name for panel in self.panels], 4), **self._start)
        self.on_msg(self._answer)
        watch_notebook()

    @traitlets.validate("position", "window", "opacity", "plane", "show", "style")
    def _validate(self, proposal: Any) -> Any:
        return self._checked(proposal.trait.name, proposal.value)

    def _checked(self, name: str, value: Any) -> Any:
        """Return a trait's value in its one form; raises `UnetlibError` where it has none."""
        if name in self._choices:
            if isinstance(value, str) and value in self._choices[name]:
                return value
            raise UnetlibError(f"{name} is {value!r}; this viewer has {', '.join(self._choices[name])}. Choose one.")
        count, expected = EXPECTED[name]
        numbers = _numbers(value)
        if len(numbers) == count:
            if name == "position":
                last = np.array(self.panels[0].volume.voxels.shape) - 1
                return tuple(np.clip(np.rint(numbers), 0, last).astype(int).tolist())
            if name == "window" and numbers[0] < numbers[1]:
                return tuple(numbers)
            if name == "opacity" and 0 <= numbers[0] <= 1:
                return numbers[0]
        raise UnetlibError(f"{name} is {value!r}; {expected} was expected.")

    def __repr__(self) -> str:
        return f"SliceViewer({self.title!r}, position={self.position})"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        if html := embedded.embed(self.to_fragment):
            return {"text/html": html, "text/plain": repr(self)}, {}
        show_still_at_end(self)
        return super()._repr_mimebundle_(**kwargs)

    def _answer(self, _: Any, content: Any, buffers: Any) -> None:
        if content == {"kind": "ready"}:
            self.send(*self._data())

    def _data(self, levels: int | None = None) -> tuple[dict[str, Any], list[bytes]]:
        """Return what the browser draws from: a description, and voxels and masks, x running fastest.

        `levels`: round intensities to so many steps of each volume's window.
        """
        buffers: list[bytes] = []
        places: dict[int, int] = {}  # a mask of several volumes travels once
        panels = []
        for panel, box in zip(self.panels, self.frames, strict=True):
            for mask in (panel.truth, panel.prediction):
                if mask is not None and id(mask) not in places:
                    places[id(mask)] = len(buffers)
                    buffers.append(mask.tobytes("F"))
            voxels, (low, high) = panel.volume.voxels, panel.window
            stored, slope, intercept = encode(voxels, (high - low) / levels if levels else None)
            panels.append(
                {
                    "name": panel.name,
                    "shape": voxels.shape,
                    "spacing": panel.volume.spacing,
                    "affine": panel.volume.affine.tolist(),
                    "link": panel.link.tolist(),
                    "back": np.linalg.inv(panel.link).tolist(),
                    "box": box.tolist(),
                    "origin": np.linalg.inv(panel.volume.affine)[:3, 3].tolist(),
                    "window": panel.window,
                    "slope": slope,
                    "intercept": intercept,
                    "voxels": len(buffers),
                    "truth": places.get(id(panel.truth)),
                    "prediction": places.get(id(panel.prediction)),
                }
            )
            buffers.append(stored.tobytes("F"))
        rounded = ["Intensities are rounded to keep the page small"] if levels else []
        about = {
            "kind": "data",
            "panels": panels,
            "layers": {show: [one._asdict() for one in layers] for show, layers in self.regions.by_choice.items()},
            "letters": LETTERS,
            "regions": [*self.regions.labels],
            "choices": self._choices,
            "start": self._start,
            "notes": [*self.notes, *rounded, DISCLAIMER.capitalize()],
        }
        return about, buffers

    def window_of(self, panel: Panel) -> tuple[float, float]:
        """Return the window of a volume: where `window` lies between the first one's defaults, so does it."""
        first, own = self.panels[0].window, panel.window
        low, high = (own[0] + (w - first[0]) * (own[1] - own[0]) / (first[1] - first[0]) for w in self.window)
        return low, high

    def to_png(self) -> bytes:
        """Return the slices at the present position, with the overlay, as a small PNG."""
        return draw_still(self)

    @takes_paths
    def to_fragment(self, max_bytes: int | None = None, runtime: bool = True) -> str:
        """Return the viewer as a piece of HTML that needs neither Python nor a network; a page may hold several.

        `max_bytes`: where the voxels would take more, intensities are rounded to 256 steps of the window, or to
        fewer; where 32 are still too many, only the still is left. `runtime=False` leaves out style and script
        (some 40 kB), which a page of several viewers needs once: `unetlib.show.embedded.runtime()`.
        """
        state = {name: getattr(self, name) for name in ("title", "position", "window", "opacity", *self._choices)}
        for levels in (None, *LEVELS):
            content, buffers = self._data(levels)
            packed = embedded.pack(buffers)
            if max_bytes is None or sum(map(len, packed)) <= max_bytes:
                about = {"content": content, "state": state}
                html = embedded.write_html("element", self.title, self.to_png(), about, packed)
                return f"{html}\n{embedded.runtime()}" if runtime else html
        return embedded.write_html("too_large", self.title, self.to_png())

    @takes_paths
    def to_html(self, path: Path) -> Path:
        """Write the viewer as one page that needs neither Python nor a network, and return its path.

        Raises `UnetlibError` when it cannot be written.
        """
        if not path.name:  # "." and "/"
            raise UnetlibError(f"{path} is a folder; a file was expected. Name one in it, such as viewer.html.")
        with atomic(path) as temporary:
            temporary.write_text(embedded.write_html("page", self.title, self.to_fragment()), encoding="utf-8")
        return path


def _numbers(value: Any) -> list[float]:
    """Return one number or several as a list, empty where it is neither or one of them is not finite."""
    try:
        numbers = np.asarray(value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        return []
    return numbers.tolist() if np.isfinite(numbers).all() else []
