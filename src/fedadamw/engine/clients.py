"""The clients of a run behind one interface: simulated in this process, or the nodes of a federation."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor

from fedadamw.algorithm import AnyState
from fedadamw.engine.client import Answer, Broadcast, Shard
from fedadamw.engine.evaluation import ClientScores

Outcome: TypeAlias = Literal["counted", "rejected", "stale", "late", "surplus", "lost"]


class QuorumError(RuntimeError):
    """Fewer clients than a round needs answered within the time that the run waits."""


class Traffic(NamedTuple):
    """What a round sent and received besides the accepted answers; bytes are counted from the tensors."""

    down_bytes: int
    wasted_bytes: int = 0  # received and not counted
    refused: int = 0  # answers that failed a check
    counts: Mapping[str, int] | None = None  # of a federation: asked, answered, late, refused, ...


class Update(NamedTuple):
    """How the server moved in a round."""

    round: int  # from 0
    up: AnyState | None  # the algorithm's Up: the mean of the accepted answers; None if the server moved by more
    lr: float
    participation: float  # accepted answers / all clients


class EndedJob(NamedTuple):
    """One client's work on one version of the model, once it has ended; seconds are those of the virtual clock."""

    job: int  # number over the run, from 0
    client: int
    version: int  # the round whose model it trained from, from 0
    repeat: int  # how many jobs of that client on that version came before it
    start_s: float
    finish_s: float
    outcome: Outcome
    staleness: int  # versions between that one and the one that was due when it ended
    steps: int  # local steps


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

    def message_bytes(self, clients: Sequence[int], broadcast: Broadcast) -> tuple[list[int], list[int]]:
        """What each of these clients receives and sends in the round of `broadcast`, for a virtual clock, in bytes.

        0 of clients whose messages take real time.
        """
        return [0] * len(clients), [0] * len(clients)

    @property
    def ended_jobs(self) -> Sequence[EndedJob]:
        """The jobs that ended in the present round, in the order in which they ended; none without a virtual clock."""
        return ()

    @property
    def virtual_s(self) -> float | None:
        """The virtual clock at the end of the present round, in seconds; None without one."""
        return None

    @property
    def devices_summary(self) -> dict[str, Any] | None:
        """Numbers of the present round's jobs for its record, see Record.devices; None without a virtual clock."""
        return None

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
