"""The best evaluated round of a run with keep_best; its model is kept in the checkpoint, beside the last round's state.

One file, so that both are always of the same moment: a run that was killed goes on from that moment, and finds the same
best round as one that was not.
"""

from collections.abc import Mapping
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from fedadamw.engine.record import Record
from fedadamw.engine.state import State

MODEL = ("server.x", "statistics", "base")  # the tensors of a State that are the global model
PREFIX = "best."


class Best(NamedTuple):
    """The round with the highest score so far, the earliest of equal ones."""

    round: int
    score: float
    model: Mapping[str, Tensor]  # by MODEL's names

    def tensors(self) -> dict[str, Tensor]:
        """What the checkpoint keeps, by name."""
        about = {"round": torch.tensor(self.round), "score": torch.tensor(self.score, dtype=torch.float64)}
        return {f"{PREFIX}{name}": t for name, t in (about | dict(self.model)).items()}


def choose_best(best: Best | None, record: Record, state: State, *, of_clients: bool = False) -> Best | None:
    """Return the round of `record`, after which the run is in `state`, if it is better than `best`; else `best`.

    of_clients: by the mean of the clients' scores, see Record.score.
    """
    score = record.score(of_clients=of_clients)
    if score is None or not isfinite(score) or (best is not None and score <= best.score):
        return best
    tensors = state.tensors()
    return Best(record.round, score, {name: tensors[name].cpu() for name in MODEL})


def read_best(tensors: Mapping[str, Tensor]) -> Best | None:
    """Return the best round that a checkpoint keeps, None if it keeps none."""
    if f"{PREFIX}round" not in tensors:
        return None
    model = {name: tensors[f"{PREFIX}{name}"] for name in MODEL}
    return Best(int(tensors[f"{PREFIX}round"]), float(tensors[f"{PREFIX}score"]), model)
