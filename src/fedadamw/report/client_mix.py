"""What each client trains on: how many samples, and of which classes the most."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

TOP = 3  # classes of a client that are named


class Mix(NamedTuple):
    """Sizes and classes of all clients. top: their TOP classes, the most frequent first; top_samples: 0 beyond."""

    classes: Sequence[str]
    samples: np.ndarray  # (clients,)
    held: np.ndarray  # (clients,) number of classes that it has samples of
    top: np.ndarray  # (clients, TOP) numbers of classes
    top_samples: np.ndarray  # (clients, TOP)

    @property
    def largest_share(self) -> np.ndarray:
        """The share of each client's samples that are of its most frequent class, (clients,)."""
        share: np.ndarray = self.top_samples[:, 0] / np.maximum(self.samples, 1)
        return share


def find_mix(counts: np.ndarray, classes: Sequence[str]) -> Mix | None:
    """Return the mix of the clients with `counts` (clients, classes) samples; None if all are 0, so not known."""
    if not counts.any():
        return None
    top = np.argsort(-counts, axis=1, kind="stable")[:, :TOP]
    return Mix(classes, counts.sum(1), (counts > 0).sum(1), top, np.take_along_axis(counts, top, axis=1))


def describe_classes(mix: Mix, client: int) -> str:
    """Return a client's classes in words: `cat (61%), dog (20%), bird (10%), 4 more`; "" if they are not known."""
    if not 0 <= client < len(mix.samples) or not mix.samples[client]:
        return ""
    pairs = [(c, n) for c, n in zip(mix.top[client], mix.top_samples[client], strict=True) if n]
    named = [f"{mix.classes[c]} ({n / mix.samples[client]:.0%})" for c, n in pairs]
    more = int(mix.held[client]) - len(named)
    return ", ".join([*named, *([f"{more} more"] if more else [])])
