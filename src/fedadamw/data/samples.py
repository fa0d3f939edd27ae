"""What a partition and a report need of a data set's split, whatever its samples are."""

from typing import Protocol

import numpy as np

Array = np.ndarray


class Samples(Protocol):
    """One split of a data set."""

    @property
    def labels(self) -> Array:
        """The class of each sample, (n,) int64."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""

    @property
    def groups(self) -> Array | None:
        """The natural client of each sample, (n,), if a column of the data names them."""

    @property
    def fingerprint(self) -> str:
        """A digest of every sample and label."""

    def __len__(self) -> int: ...
