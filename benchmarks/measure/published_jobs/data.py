"""What a job is trained on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor


class Data(NamedTuple):
    """Samples, and who has which."""

    train: tuple[Tensor, Tensor]  # inputs (n, channels, height, width) float32, labels (n,)
    test: tuple[Tensor, Tensor]
    clients: Sequence[np.ndarray]  # sample numbers of each
