"""Makes Flower's nodes the clients of a buffered run: the server moves whenever a buffer of uploads is full.

A round is a version then. Nodes go on with their jobs while versions pass, and what they send counts when it comes, the
less the more versions have passed since the one that they trained from.
"""

import time
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from fedadamw.engine.client import Answer, Broadcast, Shard
from fedadamw.engine.ledger import JobsPage
from fedadamw.flower.server.jobs import JobCollector
from fedadamw.flower.server.rounds import Nodes


class BufferedNodes(Nodes):
    """Nodes whose uploads fill a buffer."""

    collector: JobCollector
    _began = 0.0  # when the run would have begun on this process's clock, had it never been interrupted

    def sample(self, round_: int) -> list[int]:
        """Wait for clients to be online, as in a synchronous run; whom to ask is drawn whenever a place is free."""
        online = self.wait_for_first_round(round_) if self._first_round else self._wait_for_clients(round_, self.quorum)
        self._first_round = False
        self._note_degraded(round_, len(online), min(self.collector.concurrency, len(self)))
        return []

    def train(self, sampled: Sequence[int], broadcast: Broadcast) -> Iterator[tuple[Shard, Answer]]:
        """Keep clients at work until the buffer is full; yield its uploads in the jobs' order.

        Raises QuorumError if too few come.
        """
        collector, round_ = self.collector, broadcast.round
        self._begin(broadcast)
        if not collector.fill():
            collector.close()
            raise self._no_quorum(round_, f"{collector.answers} of {collector.wanted} uploads came")
        limits = collector.close()
        for place, (shard, answer) in zip(sorted(collector.uploads), self._load(limits), strict=True):
            version, repeat = collector.counted[place].name
            yield shard._replace(repeat=repeat), answer._replace(version=version)

    def restore(self, round_: int, tensors: Mapping[str, Tensor]) -> None:
        """Go back to the end of version `round_`; jobs that were at work then are asked anew."""
        super().restore(round_, tensors)
        jobs = self.ledger.page.jobs or JobsPage(0.0, 0, [])
        self._began = time.monotonic() - jobs.clock_s
        for number, client, version, repeat in jobs.at_work:
            facts = {"client": client, "job": number, "version": version, "repeat": repeat}
            self.events.write("asked-anew", round=round_ + 1, **facts)
        self.collector.forget_jobs(jobs.begun, [client for _, client, *_ in jobs.at_work])

    def _jobs(self) -> JobsPage:
        at_work = [[job.number, job.client, *job.name] for job in self.collector.jobs.values()]
        return JobsPage(round(time.monotonic() - self._began, 3), self.collector.next_job, at_work)
