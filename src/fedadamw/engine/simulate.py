"""A whole federated run in one process: sample, train, average, update, evaluate, record."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.engine import codecs
from fedadamw.engine.client import Answer, Shard, Workspace, autocast, batches_mix, check_company
from fedadamw.engine.diagnostics import Watch
from fedadamw.engine.loop import Loop
from fedadamw.engine.ranks import ALONE, Team, gathered, spread
from fedadamw.engine.record import DivergedError, Record
from fedadamw.engine.robust import check_robust, mean_of
from fedadamw.engine.round import Engine, Listener, RoundResult, run_round
from fedadamw.engine.stacked import Stacked
from fedadamw.engine.step import stepper
from fedadamw.engine.store import InMemory, OnDisk, Store
from fedadamw.engine.uploads import Coded, Uploads
from fedadamw.randomness import sample_clients
from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Evaluation, Task
from fedadamw.validation import InputError, check
from fedadamw.vector import Vector, all_finite, nbytes

NOT_EXACT = "lora.aggregate='exact' takes the clients' mean as it is; this algorithm's server does not"


class State(NamedTuple):
    """All that a run is between two rounds."""

    round: int  # rounds done
    server: Any  # the algorithm's Server
    statistics: Vector  # (s,) BatchNorm's running statistics, averaged over clients
    last: Vector  # (d,) the last round's change of x, for diagnostics; (0,) before it, or without them
    base: Vector  # (w,) frozen weights that the adapters' exact means are folded into; (0,) without that

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the state, by name."""
        named = {f"server.{name}": t for name, t in self.server._asdict().items()}
        return {**named, "statistics": self.statistics, "last": self.last, "base": self.base}


class Folding(Protocol):
    """Takes what clients' adapters add, a product of their factors, into frozen weights: its mean is exact."""

    base: Vector  # (w,) the frozen weights

    def load(self, base: Vector) -> None:
        """Put frozen weights (w,) into the module."""

    def product(self, y: Vector) -> Vector:
        """What the adapters of the models `y` (..., d) add to the frozen weights, (..., w)."""

    def restarted(self, x: Vector) -> Vector:
        """`x` (d,) with adapters that add nothing."""


class Remote(Engine, Protocol):
    """Clients elsewhere, with data and memories of their own."""

    @property
    def counts(self) -> Mapping[str, int]:
        """Of the present round, how many were asked, answered, were refused, ..."""

    @property
    def ledger(self) -> Store:
        """What must be known of the clients after a restart; they keep their memories themselves."""

    @property
    def down_bytes(self) -> int:
        """Of the present round, counted from the tensors."""

    @property
    def wasted_bytes(self) -> int:
        """Of the present round, of arrays that came and did not count."""

    def sample(self, round_: int) -> list[int]:
        """The clients of round `round_`."""

    def moved(self, round_: int, up: Any, lr: float, participation: float) -> None:
        """Round `round_` is over: the server moved by the mean `up` of what its clients sent."""


class Simulation:
    """A federated run of `model` over `clients`, each an array of sample numbers of `task`.

    The model is trained in place; `algorithm` and `training` say how. Iterate `rounds()`, or call `step()`.
    What clients remember is kept in this process; `keep_on_disk` changes that.
    stack: clients to train at once; may_loop: one after the other where the model turns out not to be one for that,
    else an InputError. compiled: make one kernel of the local step. ranks: who trains the others.
    folding: puts the exact mean of what the clients' adapters add into the frozen weights.
    """

    def __init__(
        self,
        model: nn.Module,
        algorithm: AnyAlgorithm,
        task: Task,
        clients: Sequence[np.ndarray],
        training: TrainingSettings,
        *,
        seed: int = 0,
        stack: int = 1,
        may_loop: bool = False,
        compiled: bool = False,
        ranks: Team = ALONE,
        folding: Folding | None = None,
    ) -> None:
        if training.clients_per_round > len(clients):
            raise InputError(
                f"clients_per_round={training.clients_per_round} is more than the {len(clients)} clients there are"
            )
        self.algorithm, self.task, self.clients = algorithm, task, clients
        self.training, self.seed, self.ranks, self.folding = training, seed, ranks, folding
        check(
            training.clients_per_round >= ranks.size,
            f"{ranks.size} ranks for {training.clients_per_round} clients a round: use at most as many",
        )
        plain = training.mean == "weighted"
        check(plain or ranks.size == 1, f"training.mean={training.mean!r} sees all clients of a round: one rank")
        check_robust(training.mean, training.byzantine, training.clients_per_round, "training.clients_per_round")
        check(not training.diagnostics or ranks.size == 1, "training.diagnostics sees all clients of a round: one rank")
        check(
            training.micro_batch is None or not batches_mix(model),
            f"training.micro_batch={training.micro_batch}: BatchNorm needs whole batches",
        )
        self.workspace = Workspace(model)
        self._check_company()
        step = stepper(algorithm, training.clip, compiled=compiled)
        common = (self.workspace, algorithm, task, training, seed, step)
        loop = Loop(*common)
        self.engine: Engine = loop if stack == 1 else Stacked(*common, group=stack, instead=loop if may_loop else None)
        self.uploads = Uploads(algorithm, codecs.made(training.upload, training.keep))
        server = algorithm.server_init(self.workspace.y.clone())
        none = self.workspace.y[:0]
        base = none if folding is None else folding.base
        self.state = State(0, server, self.workspace.statistics.clone(), none.clone(), base.clone())
        self.remote: Remote | None = None
        self.store: Store = InMemory(self.memory_template)

    def _check_company(self) -> None:
        """Raise InputError where a client cannot train because its BatchNorm would see one sample."""
        if not batches_mix(self.workspace.module):
            return
        for client, samples in enumerate(self.clients):
            alone = min(len(samples), self.training.batch_size) == 1
            if alone and not self.workspace.takes_one(self.task, int(samples[0])):
                check_company(self.training, client, len(samples))

    @property
    def memory_template(self) -> Any:
        """What a client keeps here before its first round; () where neither algorithm nor codec has it remember."""
        return () if self.remote is not None else self.uploads.memory(self.algorithm.broadcast(self.state.server))

    def rounds(self) -> Iterator[Record]:
        """The rounds from here to the last, one record each."""
        while self.state.round < self.training.rounds:
            yield self.step()

    def step(self) -> Record:
        """One round. The state changes only at its end, in one assignment."""
        start = time.perf_counter()
        state, training = self.state, self.training
        lr = training.lr_at(state.round)
        down = self.algorithm.broadcast(state.server)
        sampled = self._sampled(state.round)
        watch = Watch(self.workspace.module, state.last) if training.diagnostics else None
        with torch.random.fork_rng(_cuda_devices(self.workspace.y.device)):
            result = self._train(sampled, down, [] if watch is None else [watch_of(watch, down)])
        if result.answered == 0:
            raise DivergedError(_diverged(state.round + 1, len(sampled), lr, training))
        after = self._after(state, result, lr)
        if not all_finite(after.server):
            raise DivergedError(f"round {after.round}: the clients' mean is not finite; try a smaller training.lr")
        sent, wasted = nbytes((*down, state.statistics, state.base)) * len(sampled), 0
        if self.remote is not None:
            sent, wasted = self.remote.down_bytes, self.remote.wasted_bytes
            self.remote.moved(state.round, result.up, lr, result.answered / len(self.clients))
        tested = self.evaluate(after) if training.evaluates(state.round) else None
        self.state = after
        return Record(
            round=after.round,
            lr=lr,
            train_loss=result.train_loss,
            test_loss=None if tested is None else tested.loss,
            test_metrics=None if tested is None else dict(tested.metrics),
            clients=result.answered,
            rejected=result.rejected + (0 if self.remote is None else self.remote.counts.get("refused", 0)),
            up_bytes=result.up_bytes + wasted,
            down_bytes=sent,
            wall_s=round(time.perf_counter() - start, 4),
            diagnostics=None if watch is None else watch.numbers(),
            federation=None if self.remote is None else dict(self.remote.counts),
        )

    def train_elsewhere(self, remote: Remote) -> None:
        """Before the first round: let `remote` choose the clients, and train them."""
        check(self.ranks.size == 1, "clients elsewhere are asked by one process")
        check(not self.training.diagnostics, "training.diagnostics looks at clients while they train: not elsewhere")
        self.engine = self.remote = remote
        self.store = remote.ledger

    def _sampled(self, round_: int) -> list[int]:
        if self.remote is not None:
            return self.remote.sample(round_)
        return [int(i) for i in sample_clients(self.seed, round_, len(self.clients), self.training.clients_per_round)]

    def keep_on_disk(self, folder: Path) -> None:
        """Before the first round: let clients keep their memories in files of `folder`, where they have any."""
        template = self.memory_template
        if template != ():
            self.store = OnDisk(folder, len(self.clients), template)

    def tensors(self, state: State | None = None) -> dict[str, Tensor]:
        """All that `restore` needs to go on from `state`: the present one, or the one before the last step."""
        state = state or self.state
        return {**state.tensors(), **self.store.tensors(state.round)}

    def restore(self, round_: int, tensors: Mapping[str, Tensor]) -> None:
        """Go on from where `tensors()` gave these; a missing name or another shape raises ValueError."""
        begun = self.training.diagnostics and round_ > 0
        expected = self.state._replace(last=self.workspace.y if begun else self.workspace.y[:0])
        for name, t in expected.tensors().items():
            if name not in tensors or tensors[name].shape != t.shape or tensors[name].dtype != t.dtype:
                raise InputError(f"the state has no {name} of shape {tuple(t.shape)} and type {t.dtype}")
        device = self.workspace.y.device
        server = self.state.server
        loaded = type(server)(*(tensors[f"server.{f}"].to(device) for f in server._fields))
        self.store.restore(round_, tensors)
        kept = (tensors[name].to(device) for name in ("statistics", "last", "base"))
        self.state = State(round_, loaded, *kept)

    def synchronise(self) -> None:
        """Before the first round: the state of rank 0 on every rank."""
        round_ = torch.tensor(float(self.state.round), dtype=torch.float64, device=self.workspace.y.device)
        self.ranks.broadcast([round_, *self.state.tensors().values()])
        self.state = self.state._replace(round=int(round_))

    def _train(self, sampled: Sequence[int], down: Any, listeners: Sequence[Listener]) -> RoundResult:
        """The round's clients, this rank's share of them here, and what they keep."""
        state, ranks, template = self.state, self.ranks, self.memory_template
        memories: Iterator[Any] = (self.store.get(i, state.round) for i in sampled)
        if ranks.size > 1:
            memories = iter(spread(list(memories), template, ranks))
        shards = (Shard(i, self.clients[i], memory) for i, memory in zip(sampled, memories, strict=True))
        kept: dict[int, Any] = {}

        def keep(shard: Shard, answer: Answer) -> None:
            if answer.memory != () and ranks.size == 1:
                self.store.put(shard.client, state.round + 1, answer.memory)
            elif answer.memory != ():
                kept[sampled.index(shard.client)] = answer.memory

        folding = self.folding
        if folding is not None:
            folding.load(state.base)
        result = run_round(
            self.engine if self.remote is not None else Coded(self.engine, self.uploads, self.seed),
            state.round,
            down,
            state.statistics,
            ranks.share(shards, lambda shard: self.training.samples_per_round(len(shard.samples))),
            weighting=self.training.weighting,
            listeners=[keep, *listeners],
            ranks=ranks,
            mean=mean_of(self.training.mean, self.training.byzantine, folded=folding is not None),
            folded=None if folding is None else lambda up: folding.product(down.x + up.delta),
        )
        if ranks.size > 1:
            for place, memory in gathered(kept, len(sampled), template, ranks).items():
                if ranks.rank == 0:
                    self.store.put(sampled[place], state.round + 1, memory)
        return result

    def _after(self, state: State, result: RoundResult, lr: float) -> State:
        number = self.workspace.y.new_tensor
        participation = number(result.answered / len(self.clients))
        server = self.algorithm.server_update(state.server, result.up, number(lr), participation)
        assert result.statistics is not None
        last = server.x - state.server.x if self.training.diagnostics else state.last
        base = state.base
        if self.folding is not None and result.folded is not None:
            plain = torch.allclose(server.x, state.server.x + result.up.delta, rtol=1e-4, atol=1e-6)
            check(plain, NOT_EXACT)
            base, server = base + result.folded, server._replace(x=self.folding.restarted(server.x))
        return State(state.round + 1, server, result.statistics, last, base)

    def load(self, state: State | None = None) -> None:
        """Put the global model of `state`, by default the present one, into the module."""
        state = state or self.state
        self.workspace.load(state.server.x, state.statistics)
        if self.folding is not None:
            self.folding.load(state.base)

    def evaluate(self, state: State | None = None) -> Evaluation:
        """Loss and metrics on the held-out set of the global model of `state`, by default the present one."""
        state = state or self.state
        self.load(state)
        self.workspace.module.eval()
        ranks, n = self.ranks, self.task.held_out
        mine = slice(ranks.rank * n // ranks.size, (ranks.rank + 1) * n // ranks.size)
        with torch.no_grad(), autocast(self.training, self.workspace.y.device):
            if n < ranks.size:
                return self.task.score(self.task.outputs(self.workspace.module, 0, n))
            own = self.task.outputs(self.workspace.module, mine.start, mine.stop)
            every = own.new_zeros(n, own.shape[-1])
            every[mine] = own
            ranks.sum([every])
            return self.task.score(every)


def watch_of(watch: Watch, down: Any) -> Listener:
    """What shows `watch` each client of a round."""

    def listener(shard: Shard, answer: Answer) -> None:
        moments = getattr(answer.local, "moments", None)
        watch.see(answer.local.y - down.x, None if moments is None else moments.v)

    return listener


def _cuda_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _diverged(round_: int, clients: int, lr: float, training: TrainingSettings) -> str:
    clip = f"clip={training.clip:g}" if training.clip else "no clipping"
    return (
        f"round {round_}: all {clients} clients sent numbers that are not finite; "
        f"try a smaller training.lr (now {lr:.3g}), a smaller training.clip (now {clip}), or warmup_rounds"
    )
