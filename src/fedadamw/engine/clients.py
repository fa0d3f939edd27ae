"""The clients of a run behind one interface: simulated in this process, or the nodes of a federation."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from fedadamw.algorithm import AnyState
from fedadamw.engine.client import Answer, Broadcast, Shard
from fedadamw.engine.evaluation import ClientScores


class Traffic(NamedTuple):
    """What a round sent and received besides the accepted answers; bytes are counted from the tensors."""

    down_bytes: int
    wasted_bytes: int = 0  # received and not counted
    refused: int = 0  # answers that failed a check
    counts: Mapping[str, int] | None = None  # of a federation: asked, answered, late, refused, ...


class Update(NamedTuple):
    """How the server moved in a round."""

    round: int  # from 0
    up: AnyState  # the algorithm's Up: the mean of the accepted answers
    lr: float
    participation: float  # accepted answers / all clients


class Clients(ABC):
    """All clients of a run. A round calls `sample`, `train`, `accept` for each accepted answer, then `finish_round`."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of clients, N."""

    @abstractmethod
    def sample(self, round_: int) -> list[int]:
        """The clients that take part in round `round_` (from 0), in rising order."""

    @abstractmethod
    def train(self, sampled: Sequence[int], broadcast: Broadcast) -> Iterator[tuple[Shard, Answer]]:
        """Each sampled client's answer to `broadcast`; it is valid until the next one is asked for."""

    @abstractmethod
    def accept(self, shard: Shard, answer: Answer) -> None:
        """Keep what the client of an accepted answer remembers."""

    @abstractmethod
    def finish_round(self, update: Update) -> None:
        """Take note of how the server moved, at the end of a round."""

    def evaluate(self, broadcast: Broadcast) -> ClientScores | None:
        """Score the model on clients' own held-out samples, after `broadcast.round` rounds; None if no client can.

        The model is what `broadcast` has, and is loaded in the module too.
        """
        return None

    def asked(self) -> Mapping[int, int]:
        """How often each client was asked to train so far, in vain too; {} of simulated clients."""
        return {}

    def sums(self) -> int:
        """How many rounds' answers were summed so far, also in rounds that were lost; 0 of simulated clients."""
        return 0

    @property
    @abstractmethod
    def traffic(self) -> Traffic:
        """What the present round sent and received."""

    @abstractmethod
    def tensors(self, round_: int) -> dict[str, Tensor]:
        """What a checkpoint of round `round_` must hold of the clients; no earlier round is asked for after that."""

    @abstractmethod
    def restore(self, round_: int, tensors: Mapping[str, Tensor]) -> None:
        """Go back to the end of round `round_`, from what `tensors` gave; CheckpointError if something is missing."""
