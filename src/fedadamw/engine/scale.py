"""Uploads whose changes are multiplied, as by normalised updates."""

from collections.abc import Sequence

from torch import Tensor

from fedadamw.algorithm import AnyState
from fedadamw.engine.private_mean import SQUARE


def scale_changes(up: AnyState, factor: float | Tensor, fields: Sequence[str] = ("delta",)) -> AnyState:
    """Return an algorithm's Up, or a mean of some, with these `fields` times `factor` (), and |delta|^2 by its square.

    A factor of 1 changes no bit.
    """
    scaled = {name: getattr(up, name) * factor for name in fields}
    if SQUARE in up._fields:
        scaled[SQUARE] = up.square * factor**2
    return up._replace(**scaled)
