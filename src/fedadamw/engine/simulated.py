"""Clients simulated in this process: an engine trains them, a codec encodes their uploads, a store keeps memories."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from fedadamw.algorithm import AnyAlgorithm, AnyState
from fedadamw.engine.client import Answer, Broadcast, Shard
from fedadamw.engine.clients import Clients, Traffic, Update
from fedadamw.engine.codecs import make_codec
from fedadamw.engine.evaluation import ClientScores, choose_clients, evaluate_clients
from fedadamw.engine.loop import Loop
from fedadamw.engine.personal import make_steps, with_statistics
from fedadamw.engine.portions import CroppedStep, PortionedEngine, Portions, down_bytes
from fedadamw.engine.ranks import Team, gather_states, scatter_states
from fedadamw.engine.stacked import Stacked
from fedadamw.engine.step import Kind
from fedadamw.engine.store import InMemory, OnDisk, Store
from fedadamw.engine.uploads import CodedEngine, Engine, Uploads
from fedadamw.engine.workspace import Workspace
from fedadamw.randomness import sample_clients
from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Task


class SimulatedClients(Clients):
    """Clients that train here, each on its sample numbers of `partition`.

    stack: clients that train at once; may_loop: train them one after the other if the model cannot be stacked, else
    raise InputError. step: how local steps are done. memory_folder: keep clients' memories in files there.
    ranks: the processes that share the sampled clients. portions: of the model, if clients do not train all of it.
    held_out: the sample numbers of each client's own held-out samples, if there are any.
    """

    def __init__(
        self,
        workspace: Workspace,
        algorithm: AnyAlgorithm,
        task: Task,
        partition: Sequence[np.ndarray],
        training: TrainingSettings,
        *,
        seed: int,
        stack: int,
        may_loop: bool,
        step: Kind,
        memory_folder: Path | None,
        ranks: Team,
        portions: Portions | None = None,
        held_out: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.workspace, self.task = workspace, task
        self._held_out = choose_clients(held_out or (), seed, training.evaluate_clients)
        self.partition, self.training, self.seed, self.ranks = partition, training, seed, ranks
        self.uploads = Uploads(algorithm, make_codec(training.upload, training.keep))
        whole = make_steps(algorithm, training.clip, step)
        self.portions, self._cropped = portions, CroppedStep(whole)
        common = (workspace, algorithm, task, training, seed, whole if portions is None else self._cropped)
        loop = Loop(*common, ranks)
        self.engine: Engine = loop if stack == 1 else Stacked(*common, group=stack, fallback=loop if may_loop else None)
        down = algorithm.broadcast(algorithm.server_init(workspace.shared.clone()))
        self._no_memory = self.uploads.initial_memory(down)  # before a client's first round; () if there is none
        if memory_folder is not None and self._no_memory != ():
            self.store: Store = OnDisk(memory_folder, len(partition), self._no_memory)
        else:
            self.store = InMemory(self._no_memory)
        self._traffic = Traffic(0)
        self._round = 0  # the present one
        self._memories: dict[int, AnyState] = {}  # with several ranks: of this rank's accepted answers, by client

    def __len__(self) -> int:
        return len(self.partition)

    def sample(self, round_: int) -> list[int]:
        return [int(i) for i in sample_clients(self.seed, round_, len(self), self.training.clients_per_round)]

    def train(self, sampled: Sequence[int], broadcast: Broadcast) -> Iterator[tuple[Shard, Answer]]:
        self._round, self._traffic = broadcast.round, Traffic(down_bytes(broadcast, sampled, self.portions))
        own = with_statistics(self.engine, self.uploads.algorithm)
        coded: Engine = CodedEngine(own, self.uploads, self.seed)
        if self.portions is not None:
            coded = PortionedEngine(self.engine, self._cropped, self.uploads, self.seed, self.portions)
        yield from coded.train(self._shards(sampled), broadcast)
        if not self.ranks.alone:
            self._store_memories_of_all_ranks(sampled)

    def _shards(self, sampled: Sequence[int]) -> Iterable[Shard]:
        """The clients that this rank trains, with their memories."""
        mine = self.ranks.share([self.training.samples_per_round(len(self.partition[i])) for i in sampled])
        stored = (self.store.get(i, self._round) for i in sampled)
        memories = enumerate(scatter_states(stored, self._no_memory, self.ranks))
        shards = (Shard(sampled[i], self.partition[sampled[i]], memory) for i, memory in memories if i in mine)
        return shards if self.ranks.alone else list(shards)  # before training: all ranks take part in each

    def accept(self, shard: Shard, answer: Answer) -> None:
        if answer.memory == ():
            return
        if self.ranks.alone:
            self.store.put(shard.client, self._round + 1, answer.memory)
        else:
            self._memories[shard.client] = answer.memory

    def finish_round(self, update: Update) -> None:
        """Nothing to do: clients get the new state with the next broadcast."""

    def _store_memories_of_all_ranks(self, sampled: Sequence[int]) -> None:
        """Bring the memories of the round's clients to rank 0, which stores them."""
        mine = {place: self._memories[i] for place, i in enumerate(sampled) if i in self._memories}
        self._memories = {}
        for place, memory in gather_states(mine, len(sampled), self._no_memory, self.ranks):
            if self.ranks.leads:
                self.store.put(sampled[place], self._round + 1, memory)

    def evaluate(self, broadcast: Broadcast) -> ClientScores | None:
        module, device = self.workspace.module, self.workspace.y.device
        return evaluate_clients(self.task, module, self.training, self._held_out, device, self.ranks)

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    def tensors(self, round_: int) -> dict[str, Tensor]:
        return self.store.tensors(round_)

    def restore(self, round_: int, tensors: Mapping[str, Tensor]) -> None:
        self.store.restore(round_, tensors)
