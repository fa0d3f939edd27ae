"""Scores of the global model: on the server's held-out set, and on the clients' own held-out samples.

All clients' samples are evaluated together, in groups that do not depend on who holds them or on the number of ranks.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedadamw.engine.ranks import ALONE, Team
from fedadamw.engine.workspace import autocast
from fedadamw.randomness import sample_evaluated
from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Evaluation, Task

GROUP = 256  # samples that a rank evaluates at once, before another takes the next ones
LOSS = "loss"


class ClientScores(NamedTuple):
    """The model's score on each evaluated client's own held-out samples."""

    clients: list[int]
    samples: list[int]  # of each
    each: list[Evaluation]
    pooled: Evaluation  # on the samples of all together
    tuned: "ClientScores | None" = None  # after the model was tuned for each client
    most: float = math.inf  # samples that a client counts for, at most, in `pooled` and in the weighted mean

    @staticmethod
    def of_sums(task: Task, clients: Sequence[int], sums: Tensor, most: float = math.inf) -> "ClientScores":
        """Return the scores of clients with these sums (clients, k), see Task. most: as the field."""
        samples, each = [round(n) for n in sums[:, 0].tolist()], [task.pool(own) for own in sums]
        shares = (most / sums[:, :1]).clamp(max=1.0)
        return ClientScores(list(clients), samples, each, task.pool((sums * shares).sum(0)), most=most)

    @staticmethod
    def of_outputs(task: Task, clients: Sequence[int], samples: Sequence[int], outputs: Tensor) -> "ClientScores":
        """Return the scores of clients with so many samples, whose outputs (n, c) follow each other."""
        each = [task.score(own) for own in outputs.split(list(samples))]
        return ClientScores(list(clients), list(samples), each, task.score(outputs))

    @property
    def columns(self) -> dict[str, list[float]]:
        """The loss, then each metric, of every client; last those of tuned models."""
        names = list(self.each[0].metrics)
        columns = {LOSS: [e.loss for e in self.each], **{name: [e.metrics[name] for e in self.each] for name in names}}
        tuned = {} if self.tuned is None else self.tuned.columns
        return columns | {f"tuned_{name}": values for name, values in tuned.items()}

    def summary(self) -> Mapping[str, Any]:
        """Return the fields of a Record."""
        columns = self.columns
        main = next(iter(self.each[0].metrics), LOSS)
        values, weights = np.array(columns[main]), np.minimum(self.samples, self.most)
        ascending = np.sort(values)
        worst = (ascending[::-1] if main == LOSS else ascending)[: -(-len(values) // 10)]
        return {
            "clients_mean": float(values.mean()),
            "clients_weighted": float(values @ (weights / weights.sum())),
            "clients_std": float(values.std()),
            "clients_worst_decile": float(worst.mean()),
            "clients_metrics": {LOSS: self.pooled.loss, **self.pooled.metrics},
            **({} if self.tuned is None else {"tuned": dict(self.tuned.summary())}),
        }


class Tally:
    """Takes the outputs of clients' held-out samples, which lie one client after the other: sums where they suffice."""

    def __init__(self, task: Task, clients: Sequence[int], samples: Sequence[int]) -> None:
        """samples: how many each of the clients has."""
        self.task, self.clients, self.samples = task, clients, samples
        self._ends = np.cumsum(samples)
        self._table: Tensor | None = None  # (clients, k) sums or (n, c) outputs

    def add(self, start: int, outputs: Tensor) -> None:
        """Add the outputs (m, c) of the samples at `start` and after."""
        if self.task.unpooled:
            if self._table is None:
                self._table = outputs.new_zeros(int(self._ends[-1]), outputs.shape[-1])
            self._table[start : start + len(outputs)] = outputs
            return
        outputs, stop = outputs.cpu(), start + len(outputs)
        client = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            end = min(stop, int(self._ends[client]))
            own, outputs = outputs[: end - start], outputs[end - start :]
            sums = self.task.sums(own)
            if self._table is None:
                self._table = sums.new_zeros(len(self.clients), len(sums))
            self._table[client] += sums
            start, client = end, client + 1

    def scores(self, ranks: Team) -> ClientScores:
        """Return the scores, with what the other ranks have added; every rank must have added something."""
        assert self._table is not None
        table = self._table.to(ranks.device)
        ranks.sum([table])
        if self.task.unpooled:
            return ClientScores.of_outputs(self.task, self.clients, self.samples, table.to(self._table.device))
        return ClientScores.of_sums(self.task, self.clients, table.cpu())


def choose_clients(held_out: Sequence[np.ndarray], seed: int, count: int | None) -> dict[int, np.ndarray]:
    """Return the held-out sample numbers of the clients that a run evaluates: `count` of those that have any."""
    there = np.flatnonzero([len(own) for own in held_out])
    return {int(i): held_out[i] for i in sample_evaluated(seed, there, count)}


@torch.no_grad()
def evaluate_clients(
    task: Task,
    module: nn.Module,
    training: TrainingSettings,
    held_out: Mapping[int, np.ndarray],
    device: torch.device,
    ranks: Team,
) -> ClientScores | None:
    """Score the module on the held-out samples of each client, whose numbers (n,) `held_out` has; None without any."""
    if not held_out:
        return None
    module.eval()
    samples = torch.from_numpy(np.concatenate(list(held_out.values())))
    tally = Tally(task, list(held_out), [len(own) for own in held_out.values()])
    starts = range(0, len(samples), GROUP)
    mine = starts[ranks.rank :: ranks.size] if ranks.size <= len(starts) else starts
    for start in mine:
        with autocast(training, device):
            outputs = task.outputs_of(module, samples[start : start + GROUP])
        tally.add(start, outputs)
    return tally.scores(ranks if ranks.size <= len(starts) else ALONE)


def evaluate_each(
    task: Task,
    module: nn.Module,
    training: TrainingSettings,
    held_out: Mapping[int, np.ndarray],
    device: torch.device,
    ranks: Team,
    entered: Iterable[int],
) -> ClientScores:
    """As `evaluate_clients`, of a model for each client.

    entered: yields the clients that this rank evaluates, at least one, each when its model is in the module.
    """
    counts = [len(own) for own in held_out.values()]
    tally, starts = Tally(task, list(held_out), counts), dict(zip(held_out, np.cumsum([0, *counts]), strict=False))
    for client in entered:
        module.eval()
        for start in range(0, len(held_out[client]), GROUP):
            samples = torch.from_numpy(held_out[client][start : start + GROUP])
            with torch.no_grad(), autocast(training, device):
                tally.add(int(starts[client]) + start, task.outputs_of(module, samples))
    return tally.scores(ranks)


@torch.no_grad()
def evaluate_held_out(
    task: Task, module: nn.Module, training: TrainingSettings, device: torch.device, ranks: Team
) -> Evaluation:
    """Return loss and metrics of the module on the server's held-out samples."""
    module.eval()
    n = task.held_out
    shared = 1 < ranks.size <= n
    mine = slice(ranks.rank * n // ranks.size, (ranks.rank + 1) * n // ranks.size) if shared else slice(0, n)
    with autocast(training, device):
        outputs = task.outputs(module, mine.start, mine.stop)
    if shared:
        own, outputs = outputs, outputs.new_zeros(n, outputs.shape[-1])
        outputs[mine] = own
        ranks.sum([outputs])
    return task.score(outputs)  # without autocast, which would round a metric's own products
