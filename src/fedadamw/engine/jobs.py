"""Who works when, with buffered aggregation, by a virtual clock: nothing here depends on what clients compute.

    no answer is due at this instant, places are free:  clients that are online and not at work each begin a job
    a job ends:  its place is free; it counts for nothing if it is lost, or its model is older than max_staleness
    `buffer` other jobs ended:  so does the version; the next one begins at this instant

So the jobs of a version are known before any of them trains.
"""

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedadamw.checkpoint import CheckpointError
from fedadamw.devices.fleet import Fleet
from fedadamw.randomness import Purpose, numpy_generator
from fedadamw.validation import check

FEW = 64  # clients that a further draw of a version looks at, before it looks at all of them
IN_VAIN = 1000  # jobs in a row that count for nothing, after which a run ends, if no more are at work at a time


class Job(NamedTuple):
    """One client's work on one version. Jobs are taken in this order."""

    finish_s: float  # when it ends, by the virtual clock; of a lost one when its device left
    number: int  # over the run, from 0
    client: int
    version: int  # the round whose model it trains from, from 0
    repeat: int  # how many jobs of that client on that version came before it
    steps: int  # local steps
    lost: bool
    start_s: float


class Cost(NamedTuple):
    """What a job takes."""

    steps: int  # local steps
    samples: int  # that it trains on, repetitions included
    down_bytes: int
    up_bytes: int


class Costs(Protocol):
    """Tells what a job of a client takes."""

    def __call__(self, client: int) -> Cost: ...


class Boundary(NamedTuple):
    """What there is between two versions."""

    clock_s: float
    begun: int  # jobs, over the run
    at_work: tuple[Job, ...]  # in the order in which they will end

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        numbers = [(j.number, j.client, j.version, j.repeat, j.steps, int(j.lost)) for j in self.at_work]
        times = [(j.finish_s, j.start_s) for j in self.at_work]
        return {
            "jobs.clock": torch.tensor([self.clock_s], dtype=torch.float64),
            "jobs.begun": torch.tensor([self.begun]),
            "jobs.numbers": torch.tensor(numbers, dtype=torch.int64).view(-1, 6),
            "jobs.times": torch.tensor(times, dtype=torch.float64).view(-1, 2),
        }

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Boundary":
        """Read what `tensors` gave; CheckpointError if it is not there."""
        names = ("jobs.clock", "jobs.begun", "jobs.numbers", "jobs.times")
        missing = next((name for name in names if name not in tensors), None)
        if missing is not None:
            raise CheckpointError(f"the checkpoint has no {missing}: it is not of a run with buffered aggregation")
        clock, begun, numbers, times = (tensors[name].tolist() for name in names)
        rows = ((*row, *at) for row, at in zip(numbers, times, strict=True))
        jobs = (Job(finish, n, c, v, r, k, bool(lost), start) for n, c, v, r, k, lost, finish, start in rows)
        return cls(clock[0], begun[0], tuple(jobs))


@dataclass(frozen=True)
class Rules:
    """Who is drawn, and when a version ends."""

    fleet: Fleet
    seed: int
    clients: int  # N
    buffer: int  # answers that make a version, M
    places: int  # clients that train at any time
    max_staleness: int | None
    cost: Costs

    def is_stale(self, job: Job, version: int) -> bool:
        """Whether the answer of `job` is too old to count in `version`."""
        return self.max_staleness is not None and version - job.version > self.max_staleness


class Version:
    """The jobs of one version, from `before`, what there was at its beginning."""

    def __init__(self, rules: Rules, number: int, before: Boundary) -> None:
        self.rules, self.number, self.before = rules, number, before
        self.clock_s = before.clock_s
        self.begun: list[Job] = []
        self.ended: list[Job] = []  # in this order
        self.arrived: list[Job] = []  # those of them whose answers fill the buffer
        self._heap = list(before.at_work)
        self._works = np.zeros(rules.clients, bool)
        self._works[[job.client for job in before.at_work]] = True
        self._draws, self._in_vain, self._repeats = 0, 0, Counter[int]()
        while len(self.arrived) < rules.buffer:
            if not self._heap or self._heap[0].finish_s > self.clock_s:
                self._begin_jobs()
            self._go_on()

    @property
    def after(self) -> Boundary:
        """What there is at its end."""
        return Boundary(self.clock_s, self.before.begun + len(self.begun), tuple(sorted(self._heap)))

    @property
    def idle(self) -> float:
        """The share of the places' time in which no client worked there; 0 if no time passed."""
        start, end = self.before.clock_s, self.clock_s
        worked = sum(min(job.finish_s, end) - max(job.start_s, start) for job in (*self.ended, *self._heap))
        return max(0.0, 1 - worked / (self.rules.places * (end - start))) if end > start else 0.0

    def _go_on(self) -> None:
        """Go on to the end of the next job, or to when a client comes online for whom there is a place."""
        end = self._heap[0].finish_s if self._heap else inf
        if end > self.clock_s and (comes := self._next_online()) < end:
            self.clock_s = comes
            return
        job = heapq.heappop(self._heap)
        self.clock_s = job.finish_s
        self._works[job.client] = False
        self.ended.append(job)
        if not (job.lost or self.rules.is_stale(job, self.number)):
            self.arrived.append(job)
            self._in_vain = 0
            return
        self._in_vain += 1
        limit = max(IN_VAIN, 10 * self.rules.places)
        check(
            self._in_vain < limit,
            f"version {self.number + 1}: the last {limit:,} jobs were lost; let devices stay longer "
            "(devices.availability), or take fewer training.steps",
        )

    def _next_online(self) -> float:
        """Return when the next client comes online that is not at work; inf if there is no place for it."""
        if len(self._heap) == self.rules.places:
            return inf
        away = np.flatnonzero(~self._works)
        return float(self.rules.fleet.next_online(away, self.clock_s).min(initial=inf))

    def _begin_jobs(self) -> None:
        """Let clients begin in the places that are free."""
        rules, places = self.rules, self.rules.places - len(self._heap)
        clients = self._draw(places) if places else []
        if not clients:
            return
        costs = [rules.cost(client) for client in clients]
        repeats = [self._repeats[client] for client in clients]
        steps, *amounts = zip(*costs, strict=True)
        versions = [self.number] * len(clients)
        ends = rules.fleet.plan_jobs(clients, versions, repeats, self.clock_s, *amounts)
        first = self.before.begun + len(self.begun)
        rows = zip(clients, repeats, steps, *(end.tolist() for end in ends), strict=True)
        for number, (client, repeat, k, finish_s, lost) in enumerate(rows, start=first):
            job = Job(finish_s, number, client, self.number, repeat, k, lost, self.clock_s)
            heapq.heappush(self._heap, job)
            self.begun.append(job)
        self._works[clients] = True
        self._repeats.update(clients)

    def _draw(self, count: int) -> list[int]:
        """Return clients that are online and not at work, in rising order: `count`, or all of them if they are fewer.

        The first draw of a version is as that of a synchronous round. A further one looks at a few clients first.
        """
        rules = self.rules
        generator = numpy_generator(rules.seed, Purpose.SAMPLE_CLIENTS, self.number, repeat=self._draws)
        self._draws += 1
        if self._draws > 1 and count < FEW:
            few = np.array(list(dict.fromkeys(generator.integers(rules.clients, size=FEW).tolist())))
            free = few[self._is_free(few)]
            if len(free) >= count:
                return sorted(free[:count].tolist())
        free = np.flatnonzero(self._is_free(None))
        drawn = free[generator.choice(len(free), min(count, len(free)), replace=False)]
        return [int(client) for client in np.sort(drawn)]

    def _is_free(self, clients: NDArray[np.int64] | None) -> NDArray[np.bool_]:
        """Whether each of these clients (n,), or each of all, is online and not at work."""
        works = self._works if clients is None else self._works[clients]
        return self.rules.fleet.online(clients, self.clock_s) & ~works
