"""Buffered asynchronous rounds (FedBuff, arXiv 2106.06639): a round is a version, which ends when a buffer is full.

    `concurrency` clients work at any time, each from the version that was there when it began
    an answer comes in version R from version r:  staleness tau = R - r, discount s = 1/sqrt(1 + tau), or 1
    M answers came:  x moves by sum(s delta)/M, so that stale steps shrink; see round.py for the other sums

A client trains when its answer is due, from the broadcast of its version, which is kept until then.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedadamw.checkpoint import CheckpointError
from fedadamw.devices.fleet import Fleet
from fedadamw.engine.client import Answer, Broadcast, Shard
from fedadamw.engine.clients import Clients, EndedJob, Outcome, Traffic, Update
from fedadamw.engine.discounts import discount_of
from fedadamw.engine.evaluation import ClientScores
from fedadamw.engine.job_summary import summarise_jobs, summarise_staleness
from fedadamw.engine.jobs import Boundary, Cost, Job, Rules, Version
from fedadamw.engine.parts import read_state, state_tensors
from fedadamw.engine.simulated import SimulatedClients
from fedadamw.engine.states import map_tensors

BEGINNING = Boundary(0.0, 0, ())
CPU = torch.device("cpu")
VERSION = "version"  # of a broadcast's tensors in a checkpoint: version.3.down.x


class BufferedClients(Clients):
    """Simulated clients that work at their own pace. fleet: their devices."""

    def __init__(self, clients: SimulatedClients, fleet: Fleet) -> None:
        self.clients, self.fleet, training = clients, fleet, clients.training
        self.rules = Rules(
            fleet,
            clients.seed,
            len(clients),
            buffer=training.updates_per_version,
            places=training.clients_at_once,
            max_staleness=training.max_staleness,
            cost=self._cost_of,
        )
        self._latest = clients.first_broadcast()  # of which only the shapes matter
        self._boundaries = {0: BEGINNING}  # by round: the last two
        self._broadcasts: dict[int, Broadcast] = {}  # by version: those that a job at one of the two trains from
        self._version: Version | None = None  # the present one
        self._jobs: dict[int, Job] = {}  # by client: of the answers that the engine is at
        self._steps: dict[int, int] = {}  # by job: local steps of the present version's accepted answers
        self._wrote: set[int] = set()  # clients whose memory the present version changed

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def version(self) -> Version:
        """The jobs of the present version."""
        assert self._version is not None
        return self._version

    def sample(self, round_: int) -> list[int]:
        """The clients whose answers fill the buffer of version `round_`, in the order in which they come."""
        self._version = Version(self.rules, round_, self._boundaries[round_])
        self._steps, self._wrote = {}, set()
        return [job.client for job in self._version.arrived]

    def train(self, sampled: Sequence[int], broadcast: Broadcast) -> Iterator[tuple[Shard, Answer]]:
        now = broadcast.round
        self._broadcasts[now] = self._latest = broadcast
        for jobs in _split(self.version.arrived):
            self._jobs, version = {job.client: job for job in jobs}, jobs[0].version
            discount = discount_of(now - version, self.clients.training.staleness)
            kept = _move(self._broadcasts[version], broadcast.statistics.device)
            for shard, answer in self.clients.train_shards(map(self._shard_of, jobs), kept):
                yield shard, answer._replace(version=version, discount=discount)

    def accept(self, shard: Shard, answer: Answer) -> None:
        self._steps[self._jobs[shard.client].number] = answer.steps
        if answer.memory != ():
            self.clients.store.put(shard.client, self.version.number + 1, answer.memory)
            self._wrote.add(shard.client)

    def finish_round(self, update: Update) -> None:
        """Keep the broadcasts that jobs at work train from, at the end of the version or at its beginning; in RAM."""
        before, after = update.round, update.round + 1
        self._boundaries = {before: self._boundaries[before], after: self.version.after}
        needed = self._needed(before) | self._needed(after)
        self._broadcasts = {version: _move(self._broadcasts[version], CPU) for version in sorted(needed)}

    def _needed(self, round_: int) -> set[int]:
        """The versions from which jobs train that are at work at the end of round `round_`, and may count."""
        jobs = self._boundaries[round_].at_work
        return {job.version for job in jobs if not (job.lost or self.rules.is_stale(job, round_))}

    def _shard_of(self, job: Job) -> Shard:
        """The client of a job, with its memory as it is when the answer comes."""
        samples = self.clients.partition[job.client]
        memory = self.clients.store.get(job.client, self.version.number + (job.client in self._wrote))
        steps = self.fleet.steps_of(job.client, self.clients.training, len(samples))
        return Shard(job.client, samples, memory, repeat=job.repeat, steps=steps)

    def _cost_of(self, client: int) -> Cost:
        training, samples = self.clients.training, len(self.clients.partition[client])
        own = self.fleet.steps_of(client, training, samples)
        (down,), (up,) = self.clients.message_bytes([client], self._latest)
        work = training.steps_per_round(samples, own), training.samples_per_round(samples, own)
        return Cost(*work, down, up)

    def evaluate(self, broadcast: Broadcast) -> ClientScores | None:
        return self.clients.evaluate(broadcast)

    @property
    def traffic(self) -> Traffic:
        """What the clients received that began in this version; wasted: what stale ones sent."""
        down = sum(self._cost_of(job.client).down_bytes for job in self.version.begun)
        stale = (job for job in self.version.ended if self._outcome(job) == "stale")
        return Traffic(down, sum(self._cost_of(job.client).up_bytes for job in stale))

    @property
    def ended_jobs(self) -> Sequence[EndedJob]:
        return [self._describe(job) for job in self.version.ended]

    def _describe(self, job: Job) -> EndedJob:
        own = (job.number, job.client, job.version, job.repeat, job.start_s, job.finish_s)
        steps = self._steps.get(job.number, job.steps)
        return EndedJob(*own, self._outcome(job), self.version.number - job.version, steps)

    def _outcome(self, job: Job) -> Outcome:
        if job.lost or job.number in self._steps:
            return "lost" if job.lost else "counted"
        return "stale" if self.rules.is_stale(job, self.version.number) else "rejected"

    @property
    def virtual_s(self) -> float:
        return self.version.clock_s

    @property
    def devices_summary(self) -> dict[str, Any]:
        jobs, version = self.ended_jobs, self.version
        numbers = summarise_jobs(jobs, self.fleet, asked=len(version.begun), idle=version.idle)
        return {**numbers, **summarise_staleness(jobs)}

    def tensors(self, round_: int) -> dict[str, Tensor]:
        kept: dict[str, Tensor] = {}
        for version in self._needed(round_):
            _, down, statistics, _ = self._broadcasts[version]
            kept |= state_tensors(down, f"{VERSION}.{version}.down") | {f"{VERSION}.{version}.statistics": statistics}
        return {**self.clients.tensors(round_), **self._boundaries[round_].tensors(), **kept}

    def restore(self, round_: int, tensors: Mapping[str, Tensor]) -> None:
        self.clients.restore(round_, tensors)
        self._boundaries = {round_: Boundary.of(tensors) if round_ else BEGINNING}
        self._broadcasts = {version: self._read(version, tensors) for version in self._needed(round_)}

    def _read(self, version: int, tensors: Mapping[str, Tensor]) -> Broadcast:
        """The kept broadcast of a version; CheckpointError if it is not there."""
        _, down, statistics, base = self._latest
        prefix = f"{VERSION}.{version}"
        for name, t in (*state_tensors(down, f"{prefix}.down").items(), (f"{prefix}.statistics", statistics)):
            if name not in tensors or tensors[name].shape != t.shape:
                raise CheckpointError(f"the checkpoint has no {name} of shape {tuple(t.shape)}")
        down = read_state(down, tensors, f"{prefix}.down", CPU)
        return Broadcast(version, down, tensors[f"{prefix}.statistics"], base)


def _move(broadcast: Broadcast, device: torch.device) -> Broadcast:
    """The same broadcast on `device`."""
    round_, down, *others = broadcast
    return Broadcast(round_, map_tensors(down, lambda t: t.to(device)), *(t.to(device) for t in others))


def _split(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Yield runs of jobs of one version and of distinct clients, which an engine may train at once."""
    run: list[Job] = []
    for job in jobs:
        if run and (job.version != run[0].version or any(job.client == other.client for other in run)):
            yield run
            run = []
        run.append(job)
    if run:
        yield run
