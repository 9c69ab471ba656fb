"""What is drawn over the slices: names, colours and letters, shared by the browser and the still image."""

from unetlib.show.panels import Panel
from unetlib.show.plots import common
from unetlib.show.plots.common import FALSE_NEGATIVE, FALSE_POSITIVE, OUTLINE, TRUE_POSITIVE

DISCLAIMER = common.DISCLAIMER.capitalize()
LETTERS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}  # left, right, top, bottom; volumes are LPS
PREDICTION = "#CC79A7"

Layer = tuple[str, str, tuple[int, ...]]  # name, colour, and the classes of voxels that belong to it

# What each choice of `show` draws. Class 0 is in no mask, 1 in the truth only, 2 in the prediction only, 3 in both.
LAYERS: dict[str, list[Layer]] = {
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


def layers_of(panel: Panel, show: str) -> list[Layer]:
    """Return what is drawn in a panel: where one mask is missing there are no errors, only the other mask."""
    if show == "errors" and (panel.truth is None) != (panel.prediction is None):
        return LAYERS["prediction" if panel.truth is None else "truth"]
    return LAYERS[show]
