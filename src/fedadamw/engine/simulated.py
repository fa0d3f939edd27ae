"""Clients simulated in this process: an engine trains them, a codec encodes their uploads, a store keeps memories."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from fedadamw.algorithm import AnyAlgorithm, AnyState
from fedadamw.engine.client import Answer, Broadcast, Shard
from fedadamw.engine.clients import Clients, Traffic, Update
from fedadamw.engine.codecs import make_codec
from fedadamw.engine.evaluation import ClientScores, choose_clients, evaluate_clients, evaluate_each
from fedadamw.engine.loop import Loop
from fedadamw.engine.own_models import enter_own, enter_tuned, for_tuning, has_own_models, restored
from fedadamw.engine.personal import make_steps, with_statistics
from fedadamw.engine.portions import CroppedStep, Portion, PortionedEngine, Portions, down_bytes
from fedadamw.engine.private_gradient import SamplePrivacy
from fedadamw.engine.private_mean import ClientPrivacy
from fedadamw.engine.ranks import ALONE, Team, gather_states, scatter_states
from fedadamw.engine.stacked import Stacked
from fedadamw.engine.step import Kind, Step
from fedadamw.engine.store import InMemory, OnDisk, Store
from fedadamw.engine.uploads import CodedEngine, Engine, Uploads
from fedadamw.engine.workspace import Workspace
from fedadamw.randomness import sample_clients, sample_independently
from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Task
from fedadamw.vector import nbytes


class SimulatedClients(Clients):
    """Clients that train here, each on its sample numbers of `partition`.

    stack: clients that train at once; may_loop: train them one after the other if the model cannot be stacked, else
    raise InputError. step: how local steps are done. memory_folder: keep clients' memories in files there.
    ranks: the processes that share the sampled clients. portions: of the model, if clients do not train all of it.
    held_out: the sample numbers of each client's own held-out samples, if there are any.
    steps_of: local steps of a client in a round, None if they are training's; without it, all clients'.
    finetune: local steps that tune the final model for each evaluated client.
    privacy: of the clients' samples. client_privacy: who takes part in a round is drawn for each client independently,
    so a round may have none.
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
        stack: int = 1,
        may_loop: bool = False,
        step: Kind = "fused",
        memory_folder: Path | None = None,
        ranks: Team = ALONE,
        portions: Portions | None = None,
        held_out: Sequence[np.ndarray] | None = None,
        steps_of: Callable[[int], int | None] = lambda _: None,
        finetune: int = 0,
        privacy: SamplePrivacy | None = None,
        client_privacy: ClientPrivacy | None = None,
    ) -> None:
        self.workspace, self.algorithm, self.task, self.finetune = workspace, algorithm, task, finetune
        self.privacy, self.client_privacy, self.steps_of = privacy, client_privacy, steps_of
        self._held_out = choose_clients(held_out or (), seed, training.evaluate_clients)
        self.partition, self.training, self.seed, self.ranks = partition, training, seed, ranks
        self.uploads = Uploads(algorithm, make_codec(training.upload, training.keep))
        whole = make_steps(algorithm, training.clip, step)
        self.portions, self._cropped = portions, CroppedStep(whole)
        self._step: Step = whole if portions is None else self._cropped
        self._stack, self._may_loop = stack, may_loop
        self.engine = self._make_engine(training)
        # before a client's first round; () if there is none:
        self._no_memory = self.uploads.initial_memory(self.first_broadcast().down)
        if memory_folder is not None and self._no_memory != ():
            self.store: Store = OnDisk(memory_folder, len(partition), self._no_memory)
        else:
            self.store = InMemory(self._no_memory)
        self._sizes: dict[int | None, int] = {}  # of an upload, by the portion's number
        self._traffic, self._round = Traffic(0), 0  # of the present round
        self._memories: dict[int, AnyState] = {}  # with several ranks: of this rank's accepted answers, by client

    def _make_engine(self, training: TrainingSettings) -> Loop | Stacked:
        """Return what takes the local steps."""
        common = (self.workspace, self.algorithm, self.task, training, self.seed, self._step)
        loop = Loop(*common, self.ranks, self.privacy)
        if self._stack == 1:
            return loop
        fallback = loop if self._may_loop else None
        return Stacked(*common, group=self._stack, fallback=fallback, privacy=self.privacy)

    def __len__(self) -> int:
        return len(self.partition)

    def sample(self, round_: int) -> list[int]:
        wanted = len(self), self.training.clients_per_round
        if self.client_privacy is None:
            return [int(i) for i in sample_clients(self.seed, round_, *wanted)]
        return [int(i) for i in sample_independently(self.client_privacy.entropy, round_, *wanted)]

    def train(self, sampled: Sequence[int], broadcast: Broadcast) -> Iterator[tuple[Shard, Answer]]:
        self._round, self._traffic = broadcast.round, Traffic(down_bytes(broadcast, sampled, self.portions))
        yield from self.train_shards(self._shards(sampled), broadcast)
        if sampled and not self.ranks.alone:
            self._store_memories_of_all_ranks(sampled)

    def train_shards(self, shards: Iterable[Shard], broadcast: Broadcast) -> Iterator[tuple[Shard, Answer]]:
        """Each shard's answer to `broadcast`, as it arrives."""
        own = with_statistics(self.engine, self.uploads.algorithm)
        coded: Engine = CodedEngine(own, self.uploads, self.seed)
        if self.portions is not None:
            coded = PortionedEngine(self.engine, self._cropped, self.uploads, self.seed, self.portions)
        return coded.train(shards, broadcast)

    def first_broadcast(self) -> Broadcast:
        """What clients receive before the first round, without frozen weights that change."""
        y, algorithm = self.workspace.y, self.algorithm
        down = algorithm.broadcast(algorithm.server_init(self.workspace.shared.clone()))
        return Broadcast(0, down, self.workspace.shared_statistics.clone(), y[:0])

    def _shards(self, sampled: Sequence[int]) -> Iterable[Shard]:
        """The clients that this rank trains, with their memories."""
        own = [(self.partition[i], self.steps_of(i)) for i in sampled]
        mine = self.ranks.share([self.training.samples_per_round(len(samples), count) for samples, count in own])
        memories = enumerate(self._memories_of(sampled, self._round))
        shards = (Shard(sampled[i], own[i][0], memory, steps=own[i][1]) for i, memory in memories if i in mine)
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
        subject = (self.task, module, self.training, self._held_out, device)
        tunes = self.finetune > 0 and broadcast.round == self.training.rounds
        if not self._held_out or not (tunes or has_own_models(self.algorithm)):
            return evaluate_clients(*subject, self.ranks)
        ranks = self.ranks if self.ranks.size <= len(self._held_out) else ALONE  # else each evaluates all
        with restored(self.workspace):
            if has_own_models(self.algorithm):
                scores: ClientScores | None = evaluate_each(*subject, ranks, self._enter_own(broadcast, ranks))
            else:
                scores = evaluate_clients(*subject, self.ranks)
            if scores is not None and tunes:
                scores = scores._replace(tuned=evaluate_each(*subject, ranks, self._enter_tuned(broadcast, ranks)))
        return scores

    def _enter_own(self, broadcast: Broadcast, ranks: Team) -> Iterator[int]:
        """Each evaluated client of this rank, its own model in the module."""
        memories = self._memories_of(self._held_out, broadcast.round)
        mine = range(ranks.rank, len(self._held_out), ranks.size)
        return enter_own(self.workspace, self.algorithm, self._held_out, memories, mine)

    def _enter_tuned(self, broadcast: Broadcast, ranks: Team) -> Iterator[int]:
        """Each evaluated client of this rank, the model that was tuned for it in the module."""
        training = for_tuning(self.training, self.finetune)
        mine = ranks.share([training.samples_per_round(len(self.partition[i])) for i in self._held_out])
        memories = self._memories_of(self._held_out, broadcast.round)
        shards: Iterable[Shard] = (
            Shard(i, self.partition[i], self.uploads.split_memory(memory, broadcast.down)[0])
            for place, (i, memory) in enumerate(zip(self._held_out, memories, strict=True))
            if place in mine
        )
        shards = shards if self.ranks.alone else list(shards)  # as in `_shards`; alone, one memory after the other
        engine = with_statistics(self._make_engine(training), self.algorithm)
        return enter_tuned(self.workspace, self.algorithm, engine, shards, broadcast)

    def _memories_of(self, clients: Iterable[int], round_: int) -> Iterator[AnyState | None]:
        """The memories of these clients as of the end of round `round_`, on every rank."""
        return scatter_states((self.store.get(i, round_) for i in clients), self._no_memory, self.ranks)

    def message_bytes(self, clients: Sequence[int], broadcast: Broadcast) -> tuple[list[int], list[int]]:
        if self.portions is None:
            return [broadcast.nbytes] * len(clients), [self._up_bytes(None, broadcast)] * len(clients)
        portions = [self.portions.of(client) for client in clients]
        down = [down_bytes(broadcast, [client], self.portions) for client in clients]
        return down, [self._up_bytes(portion, broadcast) for portion in portions]

    def _up_bytes(self, portion: Portion | None, broadcast: Broadcast) -> int:
        """What a client with this portion sends, in bytes: no number of it matters for that."""
        key = None if portion is None else portion.number
        if key not in self._sizes:
            places = None if portion is None else portion.places
            self._sizes[key] = self.uploads.nbytes(broadcast.down, places) + nbytes([broadcast.statistics])
        return self._sizes[key]

    @property
    def traffic(self) -> Traffic:
        return self._traffic

    def tensors(self, round_: int) -> dict[str, Tensor]:
        return self.store.tensors(round_)

    def restore(self, round_: int, tensors: Mapping[str, Tensor]) -> None:
        self.store.restore(round_, tensors)
