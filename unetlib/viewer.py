"""Look at volumes slice by slice in a notebook, with the masks of an expert and of a network.

The pictures are drawn in the browser by `viewer.js`. It asks once for the voxels with the message
`{kind: "ready"}` and gets one message `{kind: "data", ...}` with the voxels as binary buffers: a
key press then needs no answer from Python, and a saved notebook holds no voxels. Only the small
traits (`position`, `window`, ...) are kept in step on both sides.
"""

import base64
import gzip
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import matplotlib
import numpy as np
import traitlets
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from unetlib.errors import UnetlibError, first_of
from unetlib.files import atomic
from unetlib.panels import AXIS, Images, Masks, Panel, encode, middle, read_panels
from unetlib.plots.common import FALSE_NEGATIVE, FALSE_POSITIVE, OUTLINE, TRUE_POSITIVE, to_png

DISCLAIMER = "For research and education, never for clinical use"
SMALL = 45_000  # bytes of the static picture: every viewer leaves one in the notebook
SCRIPT, STYLE = Path(__file__).with_name("viewer.js"), Path(__file__).with_name("viewer.css")
EXPECTED = {
    "position": (3, "a voxel (x, y, z)"),
    "window": (2, "(low, high), low below high,"),
    "opacity": (1, "a number from 0 to 1"),
}
LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}  # left, right, top, bottom; volumes are LPS

# What each choice of `show` draws: names, colours, and the classes of voxels that they belong to.
# Class 0 is in no mask, 1 in the truth only, 2 in the prediction only, 3 in both.
PREDICTION = "#CC79A7"
LAYERS: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {
    "none": [],
    "truth": [("truth", OUTLINE, (1, 3))],
    "prediction": [("prediction", PREDICTION, (2, 3))],
    "both": [("truth", OUTLINE, (1, 3)), ("prediction", PREDICTION, (2, 3))],
    "errors": [
        ("found (TP)", TRUE_POSITIVE, (3,)),
        ("missed (FN)", FALSE_NEGATIVE, (1,)),
        ("false alarm (FP)", FALSE_POSITIVE, (2,)),
    ],
}


class Checked(traitlets.Any):
    """A trait that leaves everything, `None` too, to the viewer's own check."""

    allow_none = False


class SliceViewer(anywidget.AnyWidget):
    """Volumes in axial, coronal and sagittal slices, with truth and prediction, in a notebook.

    `volume`: the path of a NIfTI file, a nibabel image, a `Source`, a `Volume`, or an array (X, Y, Z)
    in LPS order; a list or a dict (name: volume) shows several side by side, linked by millimetres.
    `truth`, `prediction`: masks of the same kinds, labels 0..255 or bool; one for all volumes, or a
    list or dict like that of the volumes. A mask on another grid is resampled through the affines.
    `affine`: (4, 4), voxel to millimetres, of volumes that are arrays; 1 mm where not given.

    Traits, kept in step with the browser:

    - `position` (x, y, z): the voxel of the first volume, in LPS order; clipped to the volume;
    - `window` (low, high): the intensities shown black and white in the first volume; the others
      follow in proportion;
    - `opacity` of the overlay, 0..1;
    - `plane`: "axial", "coronal" or "sagittal", what the slider and the arrow keys move through;
    - `show`: "none", "truth", "prediction", "both" or "errors";
    - `style`: "fill" or "outline".

    Raises `UnetlibError` when a volume or mask cannot be read or does not fit, or a trait cannot
    have the value. For research and education, never for clinical use.
    """

    _esm, _css = SCRIPT, STYLE
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
        title: str = "",
        position: Sequence[int] | None = None,
        window: Sequence[float] | None = None,
        opacity: float = 0.5,
        plane: str = "axial",
        show: str | None = None,
        style: str = "fill",
    ) -> None:
        self._panels, self._notes = read_panels(volume, truth, prediction, affine)
        true, predicted = (any(getattr(p, kind) is not None for p in self._panels) for kind in ("truth", "prediction"))
        self._choices = {
            "plane": list(AXIS),
            "show": ["none"]
            + ["truth"] * true
            + ["prediction"] * predicted
            + ["both", "errors"] * (true and predicted),
            "style": ["fill", "outline"],
        }
        values = {
            "position": middle(self._panels) if position is None else position,
            "window": self._panels[0].window if window is None else window,
            "opacity": opacity,
            "plane": plane,
            "show": self._choices["show"][-1] if show is None else show,
            "style": style,
        }
        names = first_of([panel.name for panel in self._panels], 4)
        super().__init__(title=title or names, **{name: self._checked(name, value) for name, value in values.items()})
        self.on_msg(self._answer)

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
                last = np.array(self._panels[0].volume.voxels.shape) - 1
                return tuple(np.clip(np.rint(numbers), 0, last).astype(int).tolist())
            if name == "window" and numbers[0] < numbers[1]:
                return tuple(numbers)
            if name == "opacity" and 0 <= numbers[0] <= 1:
                return numbers[0]
        raise UnetlibError(f"{name} is {value!r}; {expected} was expected.")

    def __repr__(self) -> str:
        return f"SliceViewer({self.title!r}, position={self.position})"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Add a picture, for where no JavaScript runs."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is not None:
            bundle[0]["image/png"] = base64.b64encode(self.to_png()).decode()
        return bundle

    def _answer(self, _: Any, content: Any, buffers: Any) -> None:
        if content == {"kind": "ready"}:
            self.send(*self._data())

    def _data(self) -> tuple[dict[str, Any], list[bytes]]:
        """Return what the browser draws from: a description, and voxels and masks, x running fastest."""
        buffers: list[bytes] = []
        places: dict[int, int] = {}  # modalities share a mask: it travels once
        panels = []
        for panel in self._panels:
            for mask in (panel.truth, panel.prediction):
                if mask is not None and id(mask) not in places:
                    places[id(mask)] = len(buffers)
                    buffers.append(mask.tobytes("F"))
            stored, slope, intercept = encode(panel.volume.voxels)
            panels.append(
                {
                    "name": panel.name,
                    "shape": panel.volume.voxels.shape,
                    "spacing": panel.volume.spacing,
                    "affine": panel.volume.affine.tolist(),
                    "link": panel.link.tolist(),
                    "back": np.linalg.inv(panel.link).tolist(),
                    "window": panel.window,
                    "slope": slope,
                    "intercept": intercept,
                    "voxels": len(buffers),
                    "truth": places.get(id(panel.truth)),
                    "prediction": places.get(id(panel.prediction)),
                }
            )
            buffers.append(stored.tobytes("F"))
        about = {"kind": "data", "panels": panels, "layers": LAYERS, "letters": LETTERS, "choices": self._choices}
        return {**about, "notes": [*self._notes, DISCLAIMER]}, buffers

    def to_png(self) -> bytes:
        """Return the slices at the present position, with the overlay, as a small PNG."""
        planes = [self.plane] if len(self._panels) > 1 else list(AXIS)
        shown = [(panel, plane) for panel in self._panels for plane in planes]
        with matplotlib.rc_context({"text.color": "#DDDDDD", "font.size": 8}):
            figure = Figure(figsize=(9, 9 / max(len(shown), 3) + 0.75), facecolor="black")
            figure.subplots_adjust(left=0.005, right=0.995, bottom=0.13, top=0.88, wspace=0.02)
            for axes, (panel, plane) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
                self._draw(axes, panel, plane)
            figure.suptitle(self.title, y=0.99, fontsize=9, parse_math=False)
            named = {name: colour for panel in self._panels for name, colour, _ in self._layers(panel)}
            legend = [axes.plot([], [], "s", color=colour, label=name)[0] for name, colour in named.items()]
            if legend:
                figure.legend(handles=legend, loc="lower center", ncols=3, frameon=False, bbox_to_anchor=(0.5, 0.045))
            figure.text(0.5, 0.015, " · ".join([*self._notes, DISCLAIMER]), ha="center", fontsize=7)
            for dpi in (80, 68, 56, 40):
                picture = to_png(figure, dpi)
                if len(picture) < SMALL:
                    break
        return picture

    def _draw(self, axes: Axes, panel: Panel, plane: str) -> None:
        index = int(panel.voxel(self.position)[AXIS[plane]])
        image, classes = panel.slices(plane, index)
        low, high = self._window_of(panel)
        grey = np.rint(np.clip((image.astype(float) - low) / (high - low), 0, 1) * 31) / 31  # few levels: a small file
        picture = np.repeat(grey[..., None], 3, axis=2)
        for number in (1, 2, 3) if self.style == "fill" else ():
            if colours := [to_rgb(colour) for _, colour, members in self._layers(panel) if number in members]:
                mixed = picture[classes == number] * (1 - self.opacity) + self.opacity * np.mean(colours, axis=0)
                picture[classes == number] = mixed
        sides = np.delete(panel.volume.spacing, AXIS[plane])
        axes.imshow(picture, aspect=sides[1] / sides[0])
        for _, colour, members in self._layers(panel) if self.style == "outline" and self.opacity else ():
            if (inside := np.isin(classes, members)).any():
                axes.contour(inside, levels=[0.5], colors=colour, linewidths=1)
        places = ((0.01, 0.5, "left", "center"), (0.99, 0.5, "right", "center"), (0.5, 0.99, "center", "top"))
        for letter, (x, y, across, up) in zip(LETTERS[plane], (*places, (0.5, 0.01, "center", "bottom")), strict=True):
            axes.text(x, y, letter, transform=axes.transAxes, ha=across, va=up)
        name = panel.name if len(self._panels) > 1 else plane
        axes.set_title(f"{name}, {'xyz'[AXIS[plane]]} = {index}", fontsize=8, parse_math=False)
        axes.set_axis_off()

    def _layers(self, panel: Panel) -> list[tuple[str, str, tuple[int, ...]]]:
        """Return what is drawn in a panel: where one mask is missing there are no errors, only the other mask."""
        if self.show == "errors" and (panel.truth is None) != (panel.prediction is None):
            return LAYERS["prediction" if panel.truth is None else "truth"]
        return LAYERS[self.show]

    def _window_of(self, panel: Panel) -> tuple[float, float]:
        """Return the window of a volume: where `window` lies between the first one's defaults, so does it."""
        first, own = self._panels[0].window, panel.window
        low, high = (own[0] + (w - first[0]) * (own[1] - own[0]) / (first[1] - first[0]) for w in self.window)
        return low, high

    def to_html(self, path: str | Path) -> Path:
        """Write the viewer as one page that needs neither Python nor a network, and return its path.

        Raises `UnetlibError` when it cannot be written.
        """
        target = Path(path).expanduser()
        content, buffers = self._data()
        state = {name: getattr(self, name) for name in ("title", "position", "window", "opacity", *self._choices)}
        packed = [base64.b64encode(gzip.compress(buffer, 6, mtime=0)).decode() for buffer in buffers]
        page = PAGE % {
            "title": html.escape(self.title),
            "style": STYLE.read_text(encoding="utf-8"),
            "picture": base64.b64encode(self.to_png()).decode(),
            "data": "\n".join(f'<script type="text/plain" class="uv-data">{text}</script>' for text in packed),
            "script": SCRIPT.read_text(encoding="utf-8").replace("export default", "const makeWidget ="),
            "content": json.dumps(content).replace("<", "\\u003c"),
            "state": json.dumps(state).replace("<", "\\u003c"),
        }
        with atomic(target) as temporary:
            temporary.write_text(page, encoding="utf-8")
        return target


def _numbers(value: Any) -> list[float]:
    """Return one number or several as a list, empty where it is neither or one of them is not finite."""
    try:
        numbers = np.asarray(value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        return []
    return numbers.tolist() if np.isfinite(numbers).all() else []


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%(title)s</title>
<style>
:root { color-scheme: light dark; }
body { margin: 0; padding: 12px; background: Canvas; overflow-y: scroll; }
%(style)s
</style>
</head>
<body>
<main id="viewer"></main>
<noscript><img alt="%(title)s" src="data:image/png;base64,%(picture)s"></noscript>
%(data)s
<script type="module">
%(script)s
// A stand-in for the notebook: it keeps the traits, and answers with the data in this page.
{
  const state = %(state)s;
  const listeners = {};
  const tell = (event, ...news) => (listeners[event] ?? []).forEach((listen) => listen(...news));
  const unpack = async (element) => {
    const packed = Uint8Array.from(atob(element.textContent), (character) => character.charCodeAt(0));
    const bytes = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new DataView(await new Response(bytes).arrayBuffer());
  };
  const model = {
    get: (name) => state[name],
    set: (name, value) => { state[name] = value; tell(`change:${name}`); },
    on: (event, listen) => (listeners[event] ??= []).push(listen),
    off: () => {},
    save_changes: () => {},
    send: async () => {
      tell("msg:custom", %(content)s, await Promise.all([...document.querySelectorAll(".uv-data")].map(unpack)));
    },
  };
  const widget = makeWidget();
  widget.initialize({ model });
  widget.render({ model, el: document.getElementById("viewer") });
}
</script>
</body>
</html>
"""
