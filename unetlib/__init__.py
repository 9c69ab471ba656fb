"""Segment brain tumours on MRI with a U-Net: the library behind the course.

For research and education only. Not a medical device; never for clinical use.

From a folder of patients to a scored run, and to masks of new scans:

    from unetlib import Recipe, evaluate, prepare, predict, train

    recipe = Recipe.published.but(width=16)
    prepare("BraTS2021", "work/prepared", recipe)  # volumes to slices, split by patient
    train("work/prepared", "work/run", recipe)     # goes on by itself when it was stopped
    evaluate("work/run")                           # scores of the test patients, in work/run/evaluation
    predict("work/run", ["patient_flair.nii.gz"], "masks")

`make_cohort` makes a synthetic cohort for those who have no data, `check` says what a folder holds, `find_cases` and
`read_case` give its patients, and `SliceViewer` shows them in a notebook. `UNet` and the modules `losses`, `metrics`
and `plots` are what the course teaches. Whatever goes wrong is an `UnetlibError` with a sentence.
"""

from unetlib.support.version import __version__

TYPE_CHECKING = False  # as in `typing`, which would take milliseconds in which a Ctrl-C is a traceback
if TYPE_CHECKING:
    from unetlib import losses, metrics
    from unetlib.course.start import start
    from unetlib.data.check import check
    from unetlib.data.patients import find_cases, read_case
    from unetlib.data.prepare import Prepared, prepare
    from unetlib.evaluation.evaluate import evaluate
    from unetlib.phantom.cohort import make_cohort
    from unetlib.prediction.inference import Predictor, predict
    from unetlib.prediction.tuning import tune
    from unetlib.recipe import Recipe
    from unetlib.runs.training import train
    from unetlib.show import plots
    from unetlib.show.viewer import SliceViewer
    from unetlib.support.errors import UnetlibError
    from unetlib.unet import UNet

# Each name and the module that it comes from, or is; loaded when asked for, as the command line does without most.
_HOME = {
    "Predictor": "prediction.inference",
    "Prepared": "data.prepare",
    "Recipe": "recipe",
    "SliceViewer": "show.viewer",
    "UNet": "unet",
    "UnetlibError": "support.errors",
    "check": "data.check",
    "evaluate": "evaluation.evaluate",
    "find_cases": "data.patients",
    "losses": "losses",
    "make_cohort": "phantom.cohort",
    "metrics": "metrics",
    "plots": "show.plots",
    "predict": "prediction.inference",
    "prepare": "data.prepare",
    "read_case": "data.patients",
    "start": "course.start",
    "train": "runs.training",
    "tune": "prediction.tuning",
}
_MODULES = {"losses", "metrics", "plots"}
__all__ = [
    "Predictor",
    "Prepared",
    "Recipe",
    "SliceViewer",
    "UNet",
    "UnetlibError",
    "__version__",
    "check",
    "evaluate",
    "find_cases",
    "losses",
    "make_cohort",
    "metrics",
    "plots",
    "predict",
    "prepare",
    "read_case",
    "start",
    "train",
    "tune",
]


def __getattr__(name: str) -> object:
    """Load what is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'unetlib' has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"unetlib.{_HOME[name]}")
    return module if name in _MODULES else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
