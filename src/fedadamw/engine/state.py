"""What a run is between two rounds, and how it is saved."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from fedadamw.algorithm import AnyState
from fedadamw.engine.parts import state_tensors
from fedadamw.vector import Vector


class State(NamedTuple):
    """All that a run is between two rounds."""

    round: int  # rounds done
    server: AnyState  # the algorithm's Server, or with halves a Halved
    statistics: Vector  # (s,) BatchNorm's running statistics, averaged over clients
    last: Vector  # (d,) the last round's change of x, for diagnostics; (0,) before it, or without them
    base: Vector  # (w,) frozen weights that the adapters' exact means are folded into; (0,) without that
    clips: Tensor  # norms that the next rounds' updates are clipped to, see private_mean.py; (0,) if none is adapted

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state, by name."""
        others = {"statistics": self.statistics, "last": self.last, "base": self.base}
        others |= {"clips": self.clips} if len(self.clips) else {}
        return {**state_tensors(self.server, "server"), **others}


class Saved(NamedTuple):
    """A run at the end of a round: what `Simulation.tensors` gave."""

    round: int
    tensors: Mapping[str, Tensor]
