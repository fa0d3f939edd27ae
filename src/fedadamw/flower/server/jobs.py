"""Collects a version's uploads in a buffered run: clients go on with their jobs while the server moves.

A job is one client's work on one version of the model. It outlives the version: its upload counts when it comes, as of
the version that is due then. Whenever a job ends, another client that is online and not at work is asked.
"""

import time
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from flwr.app import Message

from fedadamw.engine.clients import EndedJob
from fedadamw.engine.clients import Outcome as EndedAs
from fedadamw.engine.ledger import JobsPage
from fedadamw.flower.protocol import STALE
from fedadamw.flower.server.attempts import POLL_NODES_S, POLL_S
from fedadamw.flower.server.check_upload import CheckedUpload, JobName
from fedadamw.flower.server.clients import ClientRegistry
from fedadamw.flower.server.collect import Collector
from fedadamw.flower.server.events import Events
from fedadamw.flower.server.messenger import TTL_MARGIN_S, Content, Messenger
from fedadamw.flower.server.norm_bounds import Norms
from fedadamw.flower.server.replies import count_bytes, is_node_gone
from fedadamw.flower.server.spool import UploadSpool
from fedadamw.flower.wire import RefusedError
from fedadamw.randomness import Purpose, numpy_generator
from fedadamw.settings.federation import FederationSettings
from fedadamw.settings.training import TrainingSettings

RETRY_S = (1.0, 30.0)  # pause before clients that failed are asked again, if no other is left: at first, and at most


class Job(NamedTuple):
    """A train request of a buffered run."""

    number: int  # over the run, from 0
    client: int
    node: int
    name: JobName
    registered: int | None  # samples that the client registered with
    samples: int | None  # samples that it has, if known
    whole: bool  # whether it carried the whole state
    start_s: float  # when it was sent, on the run's clock
    message: str  # its id


class JobCollector(Collector):
    """A Collector whose requests outlive the version that they were sent in; its uploads are kept by job."""

    def __init__(
        self,
        federation: FederationSettings,
        messenger: Messenger,
        registry: ClientRegistry,
        spool: UploadSpool,
        events: Events,
        training: TrainingSettings,
        seed: int,
    ) -> None:
        super().__init__(federation, messenger, registry, spool, events, training.updates_per_version)
        self.training, self.seed, self.concurrency = training, seed, training.clients_at_once
        self.next_job = 0
        self.began = time.monotonic()  # when the run would have begun, had it never been interrupted
        self.jobs: dict[int, Job] = {}  # without a reply, by number
        self.counted: dict[int, Job] = {}  # whose uploads are of the present version, by number
        self.ended: dict[int, EndedJob] = {}  # during the present version, by number
        self.first: list[int] = []  # clients to ask before others: a resumed run lost their jobs
        self._overdue: set[int] = set()  # numbers of jobs that take longer than deadline_s
        self._answers: Counter[int] = Counter()  # of jobs on the present version, by client
        self._failures: Counter[int] = Counter()  # during the present version, by client
        self._barred: set[int] = set()  # clients of which an upload was refused during the present version
        self._draws = 0  # of the present version

    def begin(
        self, round_: int, whole: Content, change: Content | None, counted: Mapping[int, int], model_norm: float
    ) -> None:
        """Begin to collect for the version after `round_` versions, from which clients are asked to train."""
        super().begin(round_, whole, change, counted, model_norm)
        self.counted, self.ended, self._draws = {}, {}, 0
        self._answers, self._failures, self._barred = Counter(), Counter(), set()

    @property
    def clock_s(self) -> float:
        """For how long the run has gone on, seconds, without interruptions."""
        return time.monotonic() - self.began

    def resume(self, page: JobsPage) -> None:
        """Go back to where the run was: forget the jobs at work, and ask clients that were at work then first."""
        for job in self.jobs.values():
            self.messenger.forget(job.message)
        self.jobs, self._overdue = {}, set()
        self.began, self.next_job = time.monotonic() - page.clock_s, page.begun
        self.first = [client for _, client, *_ in page.at_work]

    def fill(self) -> bool:
        """Collect uploads until they are as many as wanted; return whether they came.

        Gives up if none has come for deadline_s + wait_s, or for wait_s and no client is at work.
        """
        f, now = self.federation, time.monotonic()
        last, poll_nodes_at, pause, retry, retry_at = now, now + POLL_NODES_S, POLL_S[0], RETRY_S[0], 0.0
        while True:
            answers, pending, start = self.answers, len(self.jobs), time.monotonic()
            self._poll_jobs()
            poll_s = time.monotonic() - start
            if self.answers >= self.wanted:
                self._reject_too_long()
                if self.answers >= self.wanted:
                    return True
                continue  # others may have come before anybody is asked
            now = time.monotonic()
            last = now if self.answers > answers else last
            if now > poll_nodes_at:
                self._drop_gone()
                poll_nodes_at = now + POLL_NODES_S
            self._ask_idle()
            if not self.jobs and now > retry_at:
                if retry_at:
                    self._failures, self._barred = Counter(), set()
                else:
                    self.events.write(
                        "no-quorum", round=self.broadcast.round + 1, answers=self.answers, quorum=self.wanted
                    )
                retry_at, retry = now + retry, min(2 * retry, RETRY_S[1])
            if now - last > f.wait_s + (f.deadline_s if self.jobs else 0.0):
                return False
            pause = POLL_S[0] if len(self.jobs) != pending else min(pause * 1.5, POLL_S[1])
            time.sleep(min(max(pause, 3 * poll_s), POLL_NODES_S))  # polling takes at most a quarter of the time

    def _ask_idle(self) -> None:
        """Ask as many clients as places are free, of those online and not at work, in ascending order."""
        free = self.concurrency - (len(self.jobs) - len(self._overdue))
        busy = {job.client for job in self.jobs.values()}
        failed = {client for client, times in self._failures.items() if times > self.federation.retries}
        idle = [client for client in sorted(self.registry.joined) if client not in busy | failed | self._barred]
        again = [client for client in self.first if client in idle][: max(free, 0)]
        others = [client for client in idle if client not in again]
        drawn = min(free - len(again), len(others))
        if drawn > 0:
            generator = numpy_generator(self.seed, Purpose.SAMPLE_CLIENTS, self.broadcast.round, repeat=self._draws)
            again += [others[i] for i in generator.choice(len(others), drawn, replace=False)]
            self._draws += 1
        for client in sorted(again):
            self._ask_job(client)

    def _ask_job(self, client: int) -> None:
        """Send a client a train request from the present version."""
        joined, f = self.registry.joined[client], self.federation
        name = JobName(self.broadcast.round, self._answers[client])
        content, whole = self.broadcast.content_for(client, joined.node)
        content = content._replace(facts={**content.facts, "repeat": name.repeat})
        message = self.messenger.send(joined.node, "train", f.deadline_s, content, keep=f.wait_s + TTL_MARGIN_S)
        if message is None:
            self._failures[client] += 1
            self._count("unreachable", client)
            return
        samples = self.registry.sample_count(client)
        job = Job(self.next_job, client, joined.node, name, joined.samples, samples, whole, self.clock_s, message)
        self.jobs[job.number], self.next_job = job, self.next_job + 1
        if client in self.first:
            self.first.remove(client)
        self.counts["asked"] += 1
        self.down_bytes += content.nbytes
        self._write("asked", job)

    def _poll_jobs(self) -> None:
        """Take the replies that have come, in the jobs' order, until there are enough."""
        f, forgets_s = self.federation, self.federation.deadline_s + self.federation.wait_s + 2 * TTL_MARGIN_S
        for job in list(self.jobs.values()):
            if self.answers >= self.wanted:
                return
            reply, took_s = self.messenger.poll(job.message, job.node), self.clock_s - job.start_s
            if reply is not None:
                self._end(job, self._take(reply, job))
            elif took_s > forgets_s:
                self._give_up("lost", job)
            elif took_s > f.deadline_s and job.number not in self._overdue:
                self._overdue.add(job.number)
                self._count_job("overdue", job)

    def _take(self, reply: Message | Exception, job: Job) -> EndedAs:
        """Keep a reply's upload, or count the reason why it does not count; return how the job ended."""
        if is_node_gone(reply):
            self.registry.poll_online()
            self._count_job("unreachable", job)
            return "lost"
        staleness = self.broadcast.round - job.name.version
        limit = self.training.max_staleness
        if limit is not None and staleness > limit:
            self._count_job("outdated", job, staleness=staleness)
            self.wasted_bytes += count_bytes(reply)
            return "stale"
        try:
            upload = self.spool.accept(reply, job.number, job.client, job.registered, job.samples, job.name)
        except RefusedError as refused:
            outcome = self._handle_refusal(reply, job.client, job.node, refused)
            if outcome == "refused":
                self._barred.add(job.client)
            elif outcome != STALE or job.whole:
                self._failures[job.client] += 1
            return "rejected"
        self.uploads[job.number], self.counted[job.number] = upload, job
        if job.name.version == self.broadcast.round:
            self._answers[job.client] += 1
        self.broadcast.record_accepted(job.client, job.node, job.name.version)
        self._write("counted", job, staleness=staleness)
        return "counted"

    def _reject(self, place: int, upload: CheckedUpload, field: str, limits: Norms) -> None:
        super()._reject(place, upload, field, limits)
        self._barred.add(upload.client)
        self.ended[place] = self.ended[place]._replace(outcome="rejected")

    def _drop_gone(self) -> None:
        """Find out which clients are online; give up the jobs of nodes that left."""
        self.registry.poll_online()
        for job in list(self.jobs.values()):
            if self.registry.node_of(job.client) != job.node:
                self._give_up("unreachable", job)

    def _give_up(self, event: str, job: Job) -> None:
        self.messenger.forget(job.message)
        self._count_job(event, job)
        self._end(job, "lost")

    def _end(self, job: Job, outcome: EndedAs) -> None:
        """Free the job's place, and note how it ended."""
        del self.jobs[job.number]
        self._overdue.discard(job.number)
        times = (round(job.start_s, 3), round(self.clock_s, 3))
        staleness, steps = self.broadcast.round - job.name.version, self.spool.checker.max_steps(job.samples) or 0
        about = (job.number, job.client, *job.name, *times)
        self.ended[job.number] = EndedJob(*about, outcome, staleness, steps)

    def _count_job(self, event: str, job: Job, **facts: int) -> None:
        """Count and write an event of a job."""
        self.counts[event] += 1
        self._write(event, job, **facts)

    def _write(self, event: str, job: Job, **facts: int) -> None:
        about = {"client": job.client, "job": job.number, **job.name._asdict()}
        self.events.write(event, round=self.broadcast.round + 1, **about, **facts)
