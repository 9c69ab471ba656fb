"""The figures, a module a chapter: what the README and the notebooks show."""

from unetlib.show.plots.colours import *
from unetlib.show.plots.common import *
from unetlib.show.plots.drawing import *
from unetlib.show.plots.evaluation import *
from unetlib.show.plots.exploration import *
from unetlib.show.plots.networks import *
from unetlib.show.plots.overlays import *
from unetlib.show.plots.preprocessing import *
from unetlib.show.plots.sequences import *
from unetlib.show.plots.stronger import *
from unetlib.show.plots.training import *
from unetlib.show.plots.volumes import *
