"""Makes Flower's nodes the clients of a buffered run: the server moves whenever a buffer of uploads is full.

A round is a version then. Nodes go on with their jobs while versions pass, and what they send counts when it comes, the
less the more versions have passed since the one that they trained from.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from fedadamw.devices.fleet import Fleet
from fedadamw.engine.client import Answer, Broadcast, Shard
from fedadamw.engine.clients import EndedJob
from fedadamw.engine.discounts import discount_of
from fedadamw.engine.job_summary import summarise_jobs, summarise_staleness
from fedadamw.engine.ledger import JobsPage
from fedadamw.flower.server.jobs import JobCollector
from fedadamw.flower.server.rounds import Nodes


class BufferedNodes(Nodes):
    """Nodes whose uploads fill a buffer."""

    collector: JobCollector
    _began_s = _ended_s = 0.0  # when the present version began and ended, on the run's clock

    def sample(self, round_: int) -> list[int]:
        """Wait until clients are online: wait_for before the first version, later a quorum.

        Returns nobody: whom to ask is drawn whenever a place is free.
        """
        online = self._wait_for_clients(round_, self.quorum) if round_ else self.wait_for_first_round()
        self._note_degraded(round_, len(online), min(self.collector.concurrency, len(self)))
        return []

    def train(self, sampled: Sequence[int], broadcast: Broadcast) -> Iterator[tuple[Shard, Answer]]:
        """Keep clients at work until the buffer is full; yield its uploads in the jobs' order.

        Raises QuorumError if too few come.
        """
        collector, round_ = self.collector, broadcast.round
        self._began_s = collector.clock_s
        self._begin(broadcast)
        if not collector.fill():
            collector.close()
            raise self._no_quorum(round_, f"{collector.answers} of {collector.wanted} uploads came")
        limits, self._ended_s = collector.close(), round(collector.clock_s, 3)
        for place, (shard, answer) in zip(sorted(collector.uploads), self._load(limits), strict=True):
            version, repeat = collector.counted[place].name
            discount = discount_of(round_ - version, collector.training.staleness)
            yield shard._replace(repeat=repeat), answer._replace(version=version, discount=discount)

    def restore(self, round_: int, tensors: Mapping[str, Tensor]) -> None:
        """Go back to the end of version `round_`; clients that were at work then are asked anew."""
        super().restore(round_, tensors)
        page = self.ledger.page.jobs or JobsPage(0.0, 0, [])
        for number, client, version, repeat in page.at_work:
            facts = {"client": client, "job": number, "version": version, "repeat": repeat}
            self.events.write("asked-anew", round=round_ + 1, **facts)
        self.collector.resume(page)

    def _jobs(self) -> JobsPage:
        at_work = [[job.number, job.client, *job.name] for job in self.collector.jobs.values()]
        return JobsPage(self._ended_s, self.collector.next_job, at_work)

    @property
    def ended_jobs(self) -> Sequence[EndedJob]:
        """The jobs that ended in the present version; seconds are those that the run went on."""
        return list(self.collector.ended.values())

    @property
    def virtual_s(self) -> float:
        """For how long the run has gone on at the end of the present version, without interruptions."""
        return self._ended_s

    @property
    def devices_summary(self) -> dict[str, Any]:
        jobs, fleet = self.ended_jobs, Fleet.of(None, len(self), self.seed)
        numbers = summarise_jobs(jobs, fleet, asked=self.collector.counts["asked"], idle=self._idle())
        return {**numbers, **summarise_staleness(jobs)}

    def _idle(self) -> float:
        """The share of the present version's time in which places were free."""
        start, end, jobs = self._began_s, self._ended_s, self.collector.jobs.values()
        spans = [(job.start_s, job.finish_s) for job in self.ended_jobs] + [(job.start_s, end) for job in jobs]
        worked = sum(min(finish, end) - max(begin, start) for begin, finish in spans)
        places = self.collector.concurrency
        return max(0.0, 1 - worked / (places * (end - start))) if end > start else 0.0
