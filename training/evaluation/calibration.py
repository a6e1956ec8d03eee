"""Probabilities that mean what they say: outputs divided by a temperature, which changes no order.

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks" (2017).
"""

import math
from collections.abc import Callable

LEAST_ROWS = 100
"""Fewer tell too little of how sure a model may be."""

COOLEST, HOTTEST = 0.25, 8.0


def temperature(mean_loss: Callable[[float], float], rows: int) -> float:
    """What outputs are to be divided by for the least loss; 1 where there are too few rows to tell.

    Args:
        mean_loss: of the outputs divided by a temperature, on rows that the model did not learn from. One further row,
            of which nothing is known, must be counted in it: a model that makes no mistake among these rows would be
            made as sure as can be otherwise.
        rows: how many there are.
    """
    from scipy.optimize import minimize_scalar  # a replica, which loads the targets that call this, fits nothing

    if rows < LEAST_ROWS:
        return 1.0
    bounds = (math.log(COOLEST), math.log(HOTTEST))
    found = minimize_scalar(lambda power: mean_loss(math.exp(power)), bounds=bounds, method="bounded")
    return math.exp(float(found.x))
