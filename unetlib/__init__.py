"""Segment brain tumours on MRI with a U-Net: the library behind the course.

For research and education only. Not a medical device; never for clinical use.

From a folder of patients to a scored run, and to masks of new scans:

    from unetlib import Recipe, evaluate, prepare, predict, train

    recipe = Recipe.published.but(width=16)
    prepare("BraTS2021", "work/prepared", recipe)  # volumes to slices, split by patient
    train("work/prepared", "work/run", recipe)     # resumes if it was stopped
    evaluate("work/run")                           # scores of the test patients, in work/run/evaluation
    predict("work/run", ["patient_flair.nii.gz"], "masks")

If you have no data, `make_cohort` makes a synthetic cohort. `check` reports what a folder holds, `find_cases` and
`read_case` return its patients, and `SliceViewer` shows them in a notebook. `Run` is the folder of a run. `segment`
turns one volume into a mask, and `score` scores the masks of any tool. The course teaches `Loop`, `UNet` and the
modules `losses`, `metrics` and `plots`. `network_costs` measures the networks that `Recipe.network` may name, and
`register_network` adds your own. Errors are raised as `UnetlibError`, with a message that says what to do.
"""

from unetlib.support.version import __version__

TYPE_CHECKING = False  # importing `typing` would take milliseconds in which Ctrl-C gives a traceback
if TYPE_CHECKING:
    from unetlib import losses, metrics
    from unetlib.course.start import start
    from unetlib.data.check import check
    from unetlib.data.patients import find_cases, read_case
    from unetlib.data.prepare import prepare
    from unetlib.data.prepared import Prepared
    from unetlib.engine.costs import network_costs
    from unetlib.evaluation.evaluate import evaluate
    from unetlib.loop import Loop
    from unetlib.networks import build_network, register_network
    from unetlib.phantom.cohort import make_cohort
    from unetlib.prediction.predict import predict
    from unetlib.prediction.predictor import Predictor
    from unetlib.prediction.segment import segment
    from unetlib.prediction.tuning import tune
    from unetlib.recipe import Recipe
    from unetlib.runs.run import Run
    from unetlib.runs.training import train
    from unetlib.show import plots
    from unetlib.show.score import score
    from unetlib.show.viewer import SliceViewer
    from unetlib.support.errors import UnetlibError
    from unetlib.unet import UNet

# The module of each name. Names are loaded on first use, since the command line needs few of them.
_HOME = {
    "Loop": "loop",
    "Predictor": "prediction.predictor",
    "Prepared": "data.prepared",
    "Recipe": "recipe",
    "Run": "runs.run",
    "SliceViewer": "show.viewer",
    "UNet": "unet",
    "UnetlibError": "support.errors",
    "build_network": "networks",
    "check": "data.check",
    "evaluate": "evaluation.evaluate",
    "find_cases": "data.patients",
    "losses": "losses",
    "make_cohort": "phantom.cohort",
    "metrics": "metrics",
    "network_costs": "engine.costs",
    "plots": "show.plots",
    "predict": "prediction.predict",
    "prepare": "data.prepare",
    "read_case": "data.patients",
    "register_network": "networks",
    "score": "show.score",
    "segment": "prediction.segment",
    "start": "course.start",
    "train": "runs.training",
    "tune": "prediction.tuning",
}
_MODULES = {"losses", "metrics", "plots"}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    """Load a name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'unetlib' has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"unetlib.{_HOME[name]}")
    return module if name in _MODULES else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
