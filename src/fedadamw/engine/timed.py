"""Synchronous rounds of unequal devices under a virtual clock, as a federation's server runs them, see flower/server/.

    wait until a quorum of the clients is online; ask clients_per_round of those, and what over_selection adds
    the round ends with the first clients_per_round answers, or at the deadline, or when no other answer can come
    without a quorum:  ask others that are online, and wait for the first of them, until wait_s is over

Seconds are computed, not waited for, and only clients whose answers count train. A round's end is the next one's start;
who is still at work then stops.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedadamw.checkpoint import CheckpointError
from fedadamw.devices.fleet import Fleet
from fedadamw.engine.client import Answer, Broadcast, Shard
from fedadamw.engine.clients import Clients, EndedJob, Outcome, QuorumError, Traffic, Update
from fedadamw.engine.evaluation import ClientScores
from fedadamw.engine.job_summary import summarise_jobs
from fedadamw.randomness import Purpose, numpy_generator
from fedadamw.settings.federation import FederationSettings
from fedadamw.settings.training import TrainingSettings

TIME, JOBS = "clock.time_s", "clock.jobs"  # in a checkpoint


class Clock(NamedTuple):
    """What there is between two rounds."""

    time_s: float
    jobs: int  # that were asked for so far


class Asked(NamedTuple):
    """A client that was asked in a round."""

    client: int
    repeat: int
    start_s: float
    finish_s: float  # of a lost job when its device left
    lost: bool
    steps: int
    up_bytes: int


class TimedClients(Clients):
    """Simulated `clients`, whose devices are those of `fleet`; sizes: samples of each."""

    def __init__(
        self,
        clients: Clients,
        fleet: Fleet,
        training: TrainingSettings,
        federation: FederationSettings,
        sizes: Sequence[int] | np.ndarray,
        *,
        seed: int,
    ) -> None:
        self.clients, self.fleet, self.training, self.federation = clients, fleet, training, federation
        self.sizes, self.seed = sizes, seed
        self.wanted = training.clients_per_round
        self.quorum = federation.quorum_of(self.wanted)
        self._clocks = {0: Clock(0.0, 0)}  # by round: the last two
        self._round = 0  # the present one
        self._start_s = self._end_s = 0.0  # of the present round
        self._down_bytes = 0
        self._asked: list[Asked] = []  # in the present round
        self._counted: set[int] = set()  # places of those in `_asked` whose answers count
        self._accepted: set[int] = set()  # clients of these with finite numbers

    def __len__(self) -> int:
        return len(self.clients)

    def sample(self, round_: int) -> list[int]:
        """The clients to ask first, in rising order; if all are online, those of a run without a clock.

        Raises QuorumError if too few are online for federation.wait_s.
        """
        self.clients.sample(round_)  # tells two halves which of them trains
        self._round = round_
        self._start_s, online = self._wait_for_quorum(round_)
        wanted = min(self.federation.clients_to_ask(self.wanted), len(online))
        drawn = numpy_generator(self.seed, Purpose.SAMPLE_CLIENTS, round_).choice(len(online), wanted, replace=False)
        found: list[int] = np.sort(online[drawn]).tolist()
        return found

    def train(self, sampled: Sequence[int], broadcast: Broadcast) -> Iterator[tuple[Shard, Answer]]:
        self._asked, self._counted, self._accepted, self._down_bytes = [], set(), set(), 0
        self._ask(sampled, self._start_s, broadcast)
        self._end_s = self._end_of(self.wanted, self._start_s + self.federation.deadline_s)
        if len(self._answers(self._end_s)) < self.quorum:
            self._ask_others(broadcast)
        self._counted = set(self._answers(self._end_s)[: self.wanted])
        counted = sorted(self._asked[place].client for place in self._counted)
        yield from self.clients.train(counted, broadcast)

    def _wait_for_quorum(self, round_: int) -> tuple[float, np.ndarray]:
        """Return when a quorum of clients is online, from the end of the last round on, and who is."""
        start = now = self._clocks[round_].time_s
        until = start + self.federation.wait_s
        while len(there := np.flatnonzero(self.fleet.online(None, now))) < self.quorum:
            following = self.fleet.next_online(None, now)
            now = float(np.partition(following, self.quorum - 1)[self.quorum - 1])
            if now > until:
                raise self._no_quorum(f"{len(there)} of {len(self)} clients are online")
        return now, there

    def _ask(self, clients: Sequence[int], now: float, broadcast: Broadcast) -> None:
        """Let these clients begin a job."""
        before, training = Counter(job.client for job in self._asked), self.training
        repeats = [before[client] for client in clients]
        sizes = [int(self.sizes[client]) for client in clients]
        own = [self.fleet.steps_of(client, training, size) for client, size in zip(clients, sizes, strict=True)]
        amounts = [training.samples_per_round(*work) for work in zip(sizes, own, strict=True)]
        steps = [training.steps_per_round(*work) for work in zip(sizes, own, strict=True)]
        down, up = self.clients.message_bytes(clients, broadcast)
        versions = [broadcast.round] * len(clients)
        finish, lost = self.fleet.plan_jobs(clients, versions, repeats, now, amounts, down, up)
        starts = [now] * len(clients)
        rows = zip(clients, repeats, starts, finish.tolist(), lost.tolist(), steps, up, strict=True)
        self._asked += (Asked(*row) for row in rows)
        self._down_bytes += sum(down)

    def _answers(self, now: float) -> list[int]:
        """The places of the jobs that were answered by `now`, in the order of their answers."""
        there = (place for place, job in enumerate(self._asked) if not job.lost and job.finish_s <= now)
        return sorted(there, key=lambda place: (self._asked[place].finish_s, place))

    def _end_of(self, enough: int, until: float) -> float:
        """When `enough` jobs are answered, or all ended; `until` if that is earlier."""
        answers = sorted(job.finish_s for job in self._asked if not job.lost)
        if len(answers) >= enough:
            return min(answers[enough - 1], until)
        return min(max(job.finish_s for job in self._asked), until)

    def _ask_others(self, broadcast: Broadcast) -> None:
        """Ask others in place of those whose answers are missing, until a quorum has answered.

        Raises QuorumError if that takes longer than federation.wait_s.
        """
        now, until, attempt = self._end_s, self._end_s + self.federation.wait_s, 0
        while (answers := len(self._answers(now))) < self.quorum:
            if now >= until:
                raise self._no_quorum(f"{answers} clients answered")
            free = self._free(now)
            here = free[self.fleet.online(free, now)]
            if len(here):
                self._ask(self._draw(here, self.wanted - answers, attempt), now, broadcast)
                attempt += 1
                deadline = min(now + self.federation.deadline_s, until)
                now = max(now, self._end_of(self.quorum, deadline))
            else:
                ends = [job.finish_s for job in self._asked if job.finish_s > now]
                now = float(min([*ends, *self.fleet.next_online(free, now), until]))
        self._end_s = now

    def _free(self, now: float) -> np.ndarray:
        """The clients that neither answered in this round nor are at work."""
        free = np.ones(len(self), bool)
        free[[job.client for job in self._asked if not (job.lost and job.finish_s <= now)]] = False
        return np.flatnonzero(free)

    def _draw(self, clients: np.ndarray, count: int, attempt: int) -> list[int]:
        """Draw `count` of these clients, in rising order; first of those that were not asked yet."""
        before = np.isin(clients, [job.client for job in self._asked])
        order = numpy_generator(self.seed, Purpose.ASKED, self._round, attempt).permutation(len(clients))
        first = order[np.argsort(before[order], kind="stable")][:count]
        return sorted(clients[first].tolist())

    def _no_quorum(self, situation: str) -> QuorumError:
        return QuorumError(
            f"round {self._round + 1}: {situation}, {self.quorum} are needed (federation.quorum); waited "
            f"{self.federation.wait_s:g} s of the virtual clock (federation.wait_s)"
        )

    def accept(self, shard: Shard, answer: Answer) -> None:
        self._accepted.add(shard.client)
        self.clients.accept(shard, answer)

    def finish_round(self, update: Update) -> None:
        before = self._clocks[update.round]
        after = Clock(self._end_s, before.jobs + len(self._asked))
        self._clocks = {update.round: before, update.round + 1: after}
        self.clients.finish_round(update)

    def evaluate(self, broadcast: Broadcast) -> ClientScores | None:
        return self.clients.evaluate(broadcast)

    def message_bytes(self, clients: Sequence[int], broadcast: Broadcast) -> tuple[list[int], list[int]]:
        return self.clients.message_bytes(clients, broadcast)

    @property
    def ended_jobs(self) -> Sequence[EndedJob]:
        first, version, end = self._clocks[self._round].jobs, self._round, self._end_s
        ended = []
        for place, job in enumerate(self._asked):
            times = job.start_s, min(job.finish_s, end)
            own = (first + place, job.client, version, job.repeat, *times)
            ended.append(EndedJob(*own, self._outcome(place), 0, job.steps))
        return sorted(ended, key=lambda job: (job.finish_s, job.job))

    def _outcome(self, place: int) -> Outcome:
        job = self._asked[place]
        if place in self._counted:
            return "counted" if job.client in self._accepted else "rejected"
        if job.finish_s <= self._end_s:
            return "lost" if job.lost else "surplus"
        return "surplus" if len(self._counted) == self.wanted else "late"

    @property
    def virtual_s(self) -> float:
        return self._end_s

    @property
    def devices_summary(self) -> dict[str, Any]:
        end = self._end_s
        there = sum(end - job.start_s for job in self._asked)
        worked = sum(min(job.finish_s, end) - job.start_s for job in self._asked)
        idle = 1 - worked / there if there else 0.0
        return summarise_jobs(self.ended_jobs, self.fleet, asked=len(self._asked), idle=idle)

    @property
    def traffic(self) -> Traffic:
        answered = [place for place in self._answers(self._end_s) if place not in self._counted]
        return Traffic(self._down_bytes, sum(self._asked[place].up_bytes for place in answered))

    def tensors(self, round_: int) -> dict[str, Tensor]:
        time_s, jobs = self._clocks[round_]
        own = {TIME: torch.tensor(time_s, dtype=torch.float64), JOBS: torch.tensor(jobs)}
        return {**self.clients.tensors(round_), **own}

    def restore(self, round_: int, tensors: Mapping[str, Tensor]) -> None:
        if round_ and not {TIME, JOBS} <= tensors.keys():
            raise CheckpointError("the checkpoint has no virtual clock: it is not of a run with devices")
        self.clients.restore(round_, tensors)
        self._clocks = {round_: Clock(float(tensors[TIME]), int(tensors[JOBS])) if round_ else Clock(0.0, 0)}
