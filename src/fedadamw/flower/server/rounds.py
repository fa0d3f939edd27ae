"""Makes Flower's nodes the clients of a run: ask them, wait until the deadline, yield the uploads that count.

Uploads that pass the checks are written to disk on arrival and summed in the clients' order at the end of the round:
the same answers give the same bits, in whatever order they came.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fedadamw.algorithm import ServerState
from fedadamw.engine.client import Answer, Broadcast, Shard
from fedadamw.engine.clients import Clients, QuorumError, Traffic, Update
from fedadamw.engine.evaluation import ClientScores
from fedadamw.engine.ledger import JobsPage, Ledger, Page
from fedadamw.flower.server.collect import Collector
from fedadamw.flower.server.contents import Contents, build_contents
from fedadamw.flower.server.norm_bounds import Norms
from fedadamw.flower.server.scoring import Scoring
from fedadamw.randomness import Purpose, numpy_generator
from fedadamw.settings.federation import FederationSettings
from fedadamw.vector import Vector

RETRY_S = (1.0, 30.0)  # pause before asking more clients without a quorum: at first, and at most


class Nodes(Clients):
    """Clients that are Flower's nodes; they keep their data and memories.

    state: the type of the server's state; only if a broadcast is of this type can a change replace it. sends_base:
    whether the frozen weights change, so that they must be sent. scoring: of the model on nodes, if they evaluate it.
    With the collector's keep_places no number of a single upload is kept, besides who took part.
    """

    def __init__(
        self,
        federation: FederationSettings,
        collector: Collector,
        seed: int,
        clients_per_round: int,
        state: type[ServerState],
        *,
        sends_base: bool,
        scoring: Scoring | None = None,
    ) -> None:
        self.federation, self.collector = federation, collector
        self.registry, self.spool, self.events = collector.registry, collector.spool, collector.events
        self.seed, self.clients_per_round, self.sends_base = seed, clients_per_round, sends_base
        self.scoring, self.quorum = scoring, federation.quorum_of(clients_per_round)
        self.ledger = Ledger()
        self._norms: list[Mapping[str, float]] = []  # of the current round's accepted uploads
        self._counted: set[int] = set()  # their clients
        self._samples: dict[int, int] = {}  # sample counts that these clients report
        self._state = state
        self._first_round = True  # of this process
        self._update: Update | None = None  # of the last round
        self._contents: Contents | None = None  # of the present round

    def __len__(self) -> int:
        return self.registry.clients

    @property
    def traffic(self) -> Traffic:
        collector = self.collector
        refused = collector.counts.get("refused", 0)
        if self.scoring is None:
            return Traffic(collector.down_bytes, collector.wasted_bytes, refused, collector.counts)
        scores = self.scoring.collector
        down, other = collector.down_bytes + scores.down_bytes, collector.wasted_bytes + scores.up_bytes
        return Traffic(down, other, refused, collector.counts | scores.counts)

    def tensors(self, round_: int) -> dict[str, Tensor]:
        return self.ledger.tensors(round_)

    def restore(self, round_: int, tensors: Mapping[str, Tensor]) -> None:
        self.ledger.restore(round_, tensors)
        self.collector.broadcast.forget()
        self._contents = None

    def asked(self) -> Mapping[int, int]:
        found = self.collector.asked_file
        return {} if found is None else found.counts

    def sums(self) -> int:
        found = self.collector.asked_file
        return 0 if found is None else found.sums

    def sample(self, round_: int) -> list[int]:
        """Return the clients to ask in round `round_` (from 0), in ascending order; if all are online, the simulator's.

        Waits for federation.wait_for clients before the first round of this process, for a quorum before later rounds.
        """
        f, clients = self.federation, self.registry.clients
        wanted = min(f.clients_to_ask(self.clients_per_round), clients)
        first = self._first_round
        online = self.wait_for_first_round(round_) if first else self._wait_for_clients(round_, self.quorum)
        self._first_round = False
        self._note_degraded(round_, len(online), wanted)
        generator = numpy_generator(self.seed, Purpose.SAMPLE_CLIENTS, round_)
        return sorted(online[i] for i in generator.choice(len(online), min(wanted, len(online)), replace=False))

    def _note_degraded(self, round_: int, online: int, wanted: int) -> None:
        if online < wanted:
            self.events.write("degraded", round=round_ + 1, online=online, wanted=wanted)

    def wait_for_first_round(self, round_: int = 0) -> list[int]:
        """Wait for the clients that this process's first round waits for; return those that are online."""
        clients = self.registry.clients
        return self._wait_for_clients(round_, max(self.quorum, min(self.federation.wait_for or clients, clients)))

    def train(self, sampled: Sequence[int], broadcast: Broadcast) -> Iterator[tuple[Shard, Answer]]:
        """Ask the sampled clients; yield the answers that come by the deadline, in the clients' order.

        Raises QuorumError if there are too few.
        """
        collector, f, round_ = self.collector, self.federation, broadcast.round
        self._begin(broadcast)
        collector.collect(sampled, self.clients_per_round, f.deadline_s)
        until, pause = time.monotonic() + f.wait_s, RETRY_S[0]
        while (answers := collector.answers) < self.quorum:
            self.events.write("no-quorum", round=round_ + 1, answers=answers, quorum=self.quorum)
            if time.monotonic() > until:
                collector.close()
                raise self._no_quorum(round_, f"{answers} clients answered")
            time.sleep(pause)
            pause = min(2 * pause, RETRY_S[1])
            others = self._others(self.registry.poll_online(), sampled)
            collector.collect(others, self.quorum, min(f.deadline_s, max(until - time.monotonic(), 0.0)))
        limits = collector.close()
        if collector.asked_file is not None:
            collector.asked_file.add_sum(round_)
        yield from self._load(limits)

    def _begin(self, broadcast: Broadcast) -> None:
        """Begin a round: nobody was asked yet."""
        past = self.collector.bounds.past
        past.clear()
        past.extend(self.ledger.page.past)
        _, whole, change = self._contents_of(broadcast)
        self.collector.begin(broadcast.round, whole, change, self.ledger.page.counted, _norm(broadcast.down.x))
        self.spool.checker.begin(broadcast.round, broadcast.down)
        if self.scoring is not None:
            self.scoring.collector.begin_round()

    def _load(self, limits: Norms) -> Iterator[tuple[Shard, Answer]]:
        """Yield the round's uploads, in the order of their places, and note whose they are."""
        uploads = self.collector.uploads
        self._norms = [{name: min(n, limits[name]) for name, n in upload.norms.items()} for upload in uploads.values()]
        self._counted = {upload.client for upload in uploads.values()}
        tells = self.federation.sample_counts and not self.collector.keep_places  # which the model card sums up
        self._samples = {upload.client: upload.samples for upload in uploads.values()} if tells else {}
        for place in sorted(uploads):
            yield self.spool.load(place, uploads[place], limits)

    def _others(self, online: Iterable[int], sampled: Sequence[int]) -> list[int]:
        """Return the clients to ask in a round without quorum: as many as are missing, first those not asked yet.

        With privacy of clients only those of the round: if one fails, no other's upload takes its place in the sum.
        """
        collector = self.collector
        heard = {*collector.uploads, *collector.refused, *collector.working}
        free = [client for client in online if client not in heard]
        if collector.keep_places:
            free = [client for client in free if client in sampled]
        free.sort(key=lambda client: client in collector.asked)
        return free[: self.clients_per_round - collector.answers]

    def accept(self, shard: Shard, answer: Answer) -> None:
        """Do nothing: nodes keep their memories."""

    def finish_round(self, update: Update) -> None:
        """Record whose answers counted, and the update, from which clients can compute the new state."""
        self._update = update
        bounds = self.collector.bounds
        if not self.collector.keep_places:  # else checkpoints would have lengths of single uploads
            bounds.record_round(self._norms)
        page, done = self.ledger.page, update.round + 1
        counted = {**page.counted, **dict.fromkeys(self._counted, done)}
        self.ledger.add(done, Page(counted, list(bounds.past), {**page.samples, **self._samples}, self._jobs()))

    def _jobs(self) -> JobsPage | None:
        """What the ledger keeps of jobs; only a buffered run has some."""
        return None

    def evaluate(self, broadcast: Broadcast) -> ClientScores | None:
        """Have nodes evaluate the model; return their scores, None if too few answer: the run then continues.

        broadcast: the state of which it is the model, as the next round sends it.
        """
        assert self.scoring is not None
        share, counted = self.clients_per_round / len(self), self.ledger.page.counted
        return self.scoring.evaluate(broadcast, self._contents_of, counted, self.collector.broadcast, share=share)

    def _contents_of(self, broadcast: Broadcast) -> Contents:
        """Return what to send of a state; it is built once if that is evaluated before it is trained from."""
        if self._contents is None or self._contents.round != broadcast.round:
            reuse = self.federation.reuse and self.collector.broadcast.has_state_anywhere
            self._contents = build_contents(
                broadcast, self._update, self._state, reuse=reuse, sends_base=self.sends_base
            )
        return self._contents

    def _wait_for_clients(self, round_: int, expected: int) -> list[int]:
        """Wait until `expected` clients are online, or after wait_s a quorum; return them."""
        until = time.monotonic() + self.federation.wait_s
        waiting = False
        while len(online := self.registry.poll_online()) < expected:
            if time.monotonic() > until:
                if len(online) >= self.quorum:
                    break
                raise self._no_quorum(round_, f"{len(online)} of {self.registry.clients} clients are online")
            if not waiting:
                self.events.write("waiting", round=round_ + 1, online=len(online), wanted=expected)
                waiting = True
            time.sleep(0.25)
        return online

    def _no_quorum(self, round_: int, situation: str) -> QuorumError:
        reason = self.collector.reason or self.registry.reason
        return QuorumError(
            f"round {round_ + 1}: {situation}, {self.quorum} are needed (federation.quorum); "
            f"waited {self.federation.wait_s:g} s (federation.wait_s)" + (f"; {reason}" if reason else "")
        )


def _norm(x: Vector) -> float:
    """Return the l2 norm of a model (d,)."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))
