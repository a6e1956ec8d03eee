"""How sure a share is that was seen on a number of rows, and the difference of two."""

import numpy as np


def share_interval(share: float, rows: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a share seen on ``rows`` rows; 95 % for the ``z`` given.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927).
    """
    if rows == 0:
        return 0.0, 1.0
    spread = z * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    middle, scale = share + z**2 / (2 * rows), 1 + z**2 / rows
    return float(max(0.0, (middle - spread) / scale)), float(min(1.0, (middle + spread) / scale))


def gain_interval(share: float, other: float, rows: int) -> tuple[float, float]:
    """The 95 % interval of ``share - other``, both seen on ``rows`` rows.

    Newcombe, "Interval Estimation for the Difference Between Independent Proportions" (1998), method 10. Two models
    on the same rows tend to be right together, which makes the true interval narrower: this one errs on the safe side.
    """
    (low, high), (other_low, other_high) = share_interval(share, rows), share_interval(other, rows)
    gain = share - other
    below = np.sqrt((share - low) ** 2 + (other_high - other) ** 2)
    above = np.sqrt((high - share) ** 2 + (other - other_low) ** 2)
    return float(gain - below), float(gain + above)
