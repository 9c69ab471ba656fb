"""The figures, a module a chapter: what the README and the notebooks show."""

from unetlib.show.plots.common import (
    BLUE,
    DISCLAIMER,
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    GREY,
    ORANGE,
    OUTLINE,
    TRUE_POSITIVE,
    cut_to_head,
    draw_curves,
    draw_errors,
    draw_outline,
    in_notebook,
    is_synthetic,
    largest_slice,
    new_figure,
    save,
    show_slice,
    to_png,
)
from unetlib.show.plots.evaluation import (
    Reliability,
    calibration_figure,
    errors_figure,
    metrics_figure,
    paired_figure,
    patients_figure,
    threshold_figure,
)
from unetlib.show.plots.exploration import (
    case_figure,
    histograms_figure,
    intensities_figure,
    labels_figure,
    pictures_figure,
    positions_figure,
    profiles_figure,
    sizes_figure,
    voxels_figure,
)
from unetlib.show.plots.overlays import (
    Overlay,
    Ranked,
    best_median_worst,
    make_figures,
    overlay_figure,
    scroll_animation,
    worst,
)
from unetlib.show.plots.portraits import Portrait, find_head, portray
from unetlib.show.plots.preprocessing import (
    ceiling_figure,
    grid_figure,
    leak_figure,
    outlier_figure,
    sheet_figure,
)
from unetlib.show.plots.stronger import (
    decision_figure,
    rates_figure,
    staircase_figure,
    window_figure,
)
from unetlib.show.plots.training import (
    LiveCurves,
    architecture_figure,
    batch_figure,
    curves_figure,
    loss_figure,
    probability_figure,
)
