"""Scores the model on nodes: which clients to ask, what to send them, and whether enough have answered."""

import math
from collections.abc import Callable, Iterable, Mapping
from statistics import median_low

import numpy as np
import torch
from torch import Tensor

from fedadamw.engine.client import Broadcast
from fedadamw.engine.evaluation import ClientScores
from fedadamw.engine.workspace import Workspace
from fedadamw.flower.server.broadcast import Broadcast as Sending
from fedadamw.flower.server.contents import Contents, build_model
from fedadamw.flower.server.evaluate import SumsCollector, list_numbers
from fedadamw.flower.server.events import Facts
from fedadamw.randomness import sample_evaluated
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Task
from fedadamw.vector import nbytes


class Scoring:
    """The model's scores on nodes. workspace: has the model. sends_base: whether nodes lack its frozen weights."""

    def __init__(
        self, experiment: Experiment, task: Task, workspace: Workspace, collector: SumsCollector, *, sends_base: bool
    ) -> None:
        self.experiment, self.task, self.workspace = experiment, task, workspace
        self.collector, self.sends_base = collector, sends_base

    def evaluate(
        self,
        broadcast: Broadcast,
        contents_of: Callable[[Broadcast], Contents],
        counted: Mapping[int, int],
        sending: Sending,
        *,
        share: float,
    ) -> ClientScores | None:
        """Return the scores of the nodes that answer in time, None if they are too few.

        broadcast: the model's state, as the next round sends it, with contents_of(broadcast). counted: the last round
        whose upload counted, by client. share: of the clients that take part in a round.
        """
        collector, clients = self.collector, self._choose_clients()
        x, statistics, down = self.workspace.shared, self.workspace.shared_statistics, broadcast.down
        brings_state = self.experiment.federation.reuse and not self.sends_base and torch.equal(x, down.x)
        needs_model = not brings_state or nbytes((x,)) + share * nbytes(down) < nbytes(down)
        model = None
        if needs_model:
            model = build_model(broadcast.round, x, statistics, broadcast.base if self.sends_base else None)
        if brings_state:
            _, whole, change = contents_of(broadcast)
            sending.begin(broadcast.round, whole, change, counted)
        else:
            assert model is not None
            sending.begin(broadcast.round, model, None, counted)
        sums = collector.collect(clients, sending, model, may_bring_state=brings_state)
        return self._score(broadcast.round, clients, sums)

    def _choose_clients(self) -> list[int]:
        """Return the clients to ask, ascending: those of the simulator, if their held-out samples are known."""
        registry = self.collector.registry
        registry.poll_online()
        there = np.array(registry.with_held_out(), np.int64)
        chosen = sample_evaluated(self.experiment.seed, there, self.experiment.training.evaluate_clients)
        return [int(client) for client in chosen]

    def _score(self, round_: int, clients: list[int], sums: Mapping[int, Tensor]) -> ClientScores | None:
        """Return the scores of the clients with these sums; write who is left out."""
        f, events = self.experiment.federation, self.collector.events
        quorum, left_out = f.evaluate_quorum_of(len(clients)), set(clients) - sums.keys()
        facts: Facts = {"round": round_, "answers": len(sums), "left_out": list_numbers(left_out) or None}
        if len(sums) < quorum:
            events.write("not-evaluated", **facts, quorum=quorum)
            return None
        counts = {client: float(own[0]) for client, own in sums.items()}
        most = self._find_limit(counts.values())
        scores = ClientScores.of_sums(self.task, list(sums), torch.stack(list(sums.values())), most)
        capped = list_numbers(client for client, n in counts.items() if n > most)
        events.write("evaluated", **facts, **({"capped": capped} if capped else {}), **_describe(scores))
        events.monitor.record_scores(scores)
        return scores

    def _find_limit(self, counts: Iterable[float]) -> float:
        """Return the most samples that a node counts for; none if the server has dealt the samples itself."""
        factor, dealt = self.experiment.federation.evaluate_factor, self.collector.registry.held_out is not None
        return math.inf if factor is None or dealt else factor * median_low(counts)


def _describe(scores: ClientScores) -> Facts:
    """Return the numbers of an event: how the main metric spreads over clients."""
    return {name: round(value, 6) for name, value in scores.summary().items() if isinstance(value, float)}
