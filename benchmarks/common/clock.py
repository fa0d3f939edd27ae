"""The virtual clock of a run without its training: when each round ends does not depend on what clients learn."""

from collections.abc import Iterable, Iterator, Sequence

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.data.partition import Partition
from fedadamw.devices.fleet import Fleet
from fedadamw.engine.client import Answer, Broadcast, Shard
from fedadamw.engine.clients import Clients, Update
from fedadamw.engine.clock import with_clock
from fedadamw.engine.ranks import ALONE
from fedadamw.engine.simulated import SimulatedClients
from fedadamw.engine.workspace import Workspace
from fedadamw.settings.federation import FederationSettings
from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Task


class Idle(SimulatedClients):
    """Clients that neither train nor answer: only the clock of their devices goes on."""

    def train(self, sampled: Sequence[int], broadcast: Broadcast) -> Iterator[tuple[Shard, Answer]]:
        yield from ()

    def train_shards(self, shards: Iterable[Shard], broadcast: Broadcast) -> Iterator[tuple[Shard, Answer]]:
        yield from ()


class Clock:
    """Rounds of idle clients on the devices of `fleet`."""

    def __init__(
        self,
        workspace: Workspace,
        algorithm: AnyAlgorithm,
        task: Task,
        partition: Partition,
        training: TrainingSettings,
        federation: FederationSettings,
        fleet: Fleet,
    ) -> None:
        idle = Idle(
            workspace,
            algorithm,
            task,
            partition,
            training,
            seed=fleet.seed,
            stack=1,
            may_loop=True,
            step="fused",
            memory_folder=None,
            ranks=ALONE,
        )
        own = training, federation, partition.sizes, fleet.seed
        self.clients: Clients = with_clock(idle, fleet, *own)
        self._broadcast = idle.first_broadcast()
        self._round = 0

    def step(self) -> float:
        """Go on by a round; returns when it ends, in virtual seconds."""
        for _ in self.clients.train(self.clients.sample(self._round), self._broadcast._replace(round=self._round)):
            pass
        self.clients.finish_round(Update(self._round, (), 0.0, 0.0))
        self._round += 1
        end = self.clients.virtual_s
        assert end is not None
        return end

    def end_of(self, rounds: int) -> float:
        """Return when as many rounds end, from the beginning, in virtual seconds."""
        return max(self.step() for _ in range(rounds))

    def rounds_within(self, seconds: float) -> int:
        """Return how many rounds end within `seconds`, from the beginning."""
        rounds = 0
        while self.step() <= seconds:
            rounds += 1
        return rounds
