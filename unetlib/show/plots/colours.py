"""The colours of all figures: those of Okabe and Ito (2008), which colour-blind people can tell apart."""

from matplotlib.colors import to_rgb

TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, OUTLINE = "#009E73", "#D55E00", "#56B4E9", "#F0E442"
KEPT = TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE, OUTLINE  # exactly, in a PNG of 256 colours
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#7F7F7F"  # training, validation, what is for comparison only
CURVES = (BLUE, ORANGE, TRUE_POSITIVE, "#CC79A7", GREY)  # 3 to 1 or more against white, and against #111
LABELS = {1: "#56B4E9", 2: "#009E73", 3: "#CC79A7", 4: "#D55E00"}  # of a mask, as BraTS numbers them
REGIONS = (OUTLINE, FALSE_NEGATIVE, FALSE_POSITIVE, TRUE_POSITIVE, "#CC79A7", "#E69F00", "#FFFFFF", "#0072B2")
INK = "#797979"  # of letters and axes: 4.3 to 1 against white, and against the #111 of a dark theme
FAINT = (*to_rgb(INK), 0.25)  # grid lines and shaded ranges
ERRORS = ((TRUE_POSITIVE, "tp"), (FALSE_POSITIVE, "fp"), (FALSE_NEGATIVE, "fn"))
