"""An upload as numbers in [-1, 1] that SecAgg+ adds without loss, and their sum as an upload again.

SecAgg+ clips what lies outside a range and rounds to 22 bits, silently. So a field is divided by a limit that no honest
node exceeds (one that does sends nothing), and one that needs more bits, as v does, is split into digits: the sum of
the digits gives the sum of the numbers.
"""

import numpy as np

STEPS = 2**21  # of SecAgg+ between 0 and 1: it rounds [-1, 1] to 22 bits
FIELDS = {"delta": (0.5, 1), "v": (2.0**10, 3), "k": (2.0**20, 1)}  # name -> limit, digits


def encode(upload: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the digits of all fields; raises ValueError if a number is not finite or beyond its limit."""
    found = []
    for name, (limit, digits) in FIELDS.items():
        rest = upload[name].astype(np.float64) / limit
        if not (np.abs(rest) <= 1).all():  # neither is NaN
            raise ValueError(f"{name} has numbers that are not finite or above {limit:g}: nothing is sent")
        for _ in range(digits - 1):
            digit = np.rint(rest * STEPS) / STEPS
            found.append(digit)
            rest = (rest - digit) * STEPS
        found.append(rest)  # SecAgg+ rounds this one, up or down by chance
    return found


def decode(means: list[np.ndarray], nodes: int) -> dict[str, np.ndarray]:
    """Return the mean upload, of the digits' means over this many nodes."""
    sums = iter(np.rint(mean * nodes * STEPS) / STEPS for mean in means)  # each sum is a whole number of steps
    return {
        name: sum(next(sums) / STEPS**place for place in range(digits)) * limit / nodes
        for name, (limit, digits) in FIELDS.items()
    }
