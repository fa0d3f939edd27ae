"""A federated run: sample, train, average, update, evaluate, record, one round after the other."""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.algorithms.outer import take_directions
from fedadamw.devices.fleet import Fleet
from fedadamw.engine.client import Broadcast
from fedadamw.engine.clients import Clients, Update
from fedadamw.engine.clock import with_clock
from fedadamw.engine.diagnostics import Diagnostics
from fedadamw.engine.evaluation import ClientScores, evaluate_held_out
from fedadamw.engine.parts import Halves, Parts, Whole, read_state, server_side, state_tensors
from fedadamw.engine.personal import WithPersonal, shared_part
from fedadamw.engine.private_mean import ClientPrivacy, PrivateMean, new_private_mean
from fedadamw.engine.ranks import ALONE, Team
from fedadamw.engine.record import DivergedError, Record, describe_divergence
from fedadamw.engine.round import Aggregation, Folding, Listener, RoundResult, check_round, listen_with, run_round
from fedadamw.engine.simulated import SimulatedClients
from fedadamw.engine.state import Saved, State
from fedadamw.engine.workspace import Workspace, check_batch_norm
from fedadamw.privacy.account import Account
from fedadamw.settings.devices import DevicesSettings
from fedadamw.settings.federation import FederationSettings
from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Evaluation, Task
from fedadamw.validation import InputError, check
from fedadamw.vector import all_finite

ONLY_NOISE = "no answer to a round was accepted, so it gave only noise; try a smaller training.lr"
NOT_THE_MEAN = "takes the clients' mean as it is; this algorithm's server does not"


class Simulation:
    """A federated run of the model in `workspace` over `clients`. Iterate `rounds()`, or call `step()`.

    The model is trained in place; `algorithm` and `training` say how. ranks: the processes that share the run.
    folding: adds the exact mean of what clients' adapters contribute to the frozen weights. halves: train in turn, each
    by an algorithm of its own, in place of the whole model. account: of what is spent, with differential privacy.
    client_privacy: hides each client's part in every round.
    saved: where to resume. `listeners`, a list to append to, are called for each accepted answer.
    """

    def __init__(
        self,
        workspace: Workspace,
        algorithm: AnyAlgorithm,
        task: Task,
        training: TrainingSettings,
        clients: Clients,
        *,
        ranks: Team = ALONE,
        folding: Folding | None = None,
        halves: Halves | None = None,
        account: Account | None = None,
        saved: Saved | None = None,
        client_privacy: ClientPrivacy | None = None,
    ) -> None:
        check_round(workspace, training, len(clients), ranks)
        self.workspace, self.algorithm, self.task = workspace, algorithm, task
        self.training, self.clients, self.ranks, self.folding = training, clients, ranks, folding
        self.client_privacy, self.halves, self.account = client_privacy, halves, account
        self.parts: Parts = halves or Whole(server_side(algorithm, training.outer))
        self.listeners: list[Listener] = []
        how = (training.weighting, training.mean, training.byzantine)
        self.aggregation = Aggregation(*how, folding, ranks, training.normalize)
        self.losses: dict[int, float | None] = {}  # of the clients of the last round; None: not accepted
        self.scores: ClientScores | None = None  # of the last round, if clients were evaluated after it
        self.state = self._initial_state()
        if saved is None:
            clients.restore(0, {})  # removes what a killed start left on disk
        else:
            self.restore(saved)
        if not ranks.alone:
            self.state = self._state_of_rank_0()

    @classmethod
    def in_process(
        cls,
        model: nn.Module,
        algorithm: AnyAlgorithm,
        task: Task,
        partition: Sequence[np.ndarray],
        training: TrainingSettings,
        *,
        seed: int = 0,
        ranks: Team = ALONE,
        folding: Folding | None = None,
        saved: Saved | None = None,
        client_privacy: ClientPrivacy | None = None,
        devices: DevicesSettings | None = None,
        federation: FederationSettings | None = None,
        **how: Any,
    ) -> "Simulation":
        """A run whose clients train in this process, on their sample numbers of `partition`.

        federation: deadline and quorum under the virtual clock of `devices`; None: their defaults. how: more of
        SimulatedClients, such as stack and step.
        """
        workspace = Workspace(model)
        check_batch_norm(workspace, task, partition, training)
        fleet, sizes = Fleet.of(devices, len(partition), seed), [len(own) for own in partition]
        own = (workspace, algorithm, task, training)
        how |= {"seed": seed, "ranks": ranks, "client_privacy": client_privacy}
        how["steps_of"] = lambda client: fleet.steps_of(client, training, sizes[client])
        simulated = SimulatedClients(*own[:3], partition, training, **how)
        clients = with_clock(simulated, fleet, training, federation or FederationSettings(), sizes, seed)
        return cls(*own, clients, ranks=ranks, folding=folding, saved=saved, client_privacy=client_privacy)

    def rounds(self) -> Iterator[Record]:
        """Run the rounds that are left, and yield the record of each."""
        while not self.is_over(self.state.round):
            yield self.step()

    def is_over(self, rounds: int) -> bool:
        """Whether the run ends after `rounds` rounds: they are all, or a budget of privacy allows no other."""
        return rounds >= self.training.rounds or not (self.account is None or self.account.allows(rounds))

    def step(self) -> Record:
        """Run one round. The state changes only at its end, in one assignment."""
        start = time.perf_counter()
        state, training, clients = self.state, self.training, self.clients
        lr = training.lr_at(state.round)
        broadcast = self.parts.broadcast(state.round, state.server, state.statistics, state.base)
        sampled = clients.sample(state.round)
        diagnostics = Diagnostics(self.workspace.module, state.last) if training.diagnostics else None
        private = self._new_private_mean(broadcast)
        listeners = [] if diagnostics is None else [listen_with(diagnostics, broadcast)]
        result = self._train(sampled, broadcast, listeners, private)
        if result.up is None:
            raise DivergedError(describe_divergence(state.round + 1, len(sampled), lr, training))
        participation = (result.answered if private is None else private.privacy.clients) / len(clients)
        after = self.next_state(state, result, participation)
        after = after if private is None else after._replace(clips=private.next_clips())
        clients.finish_round(Update(state.round, result.only_up, result.lr, participation))
        evaluation, scores = self._evaluate(after)
        losses = result.losses if self.account is None else dict.fromkeys(result.losses)
        self.state, self.losses, self.scores = after, losses, scores
        traffic = clients.traffic
        record = Record(
            round=after.round,
            lr=lr,
            train_loss=result.train_loss if self.account is None else None,
            test_loss=None if evaluation is None else evaluation.loss,
            test_metrics=None if evaluation is None else dict(evaluation.metrics),
            clients=result.answered,
            rejected=result.rejected + traffic.refused,
            up_bytes=result.up_bytes + traffic.wasted_bytes,
            down_bytes=traffic.down_bytes,
            wall_s=round(time.perf_counter() - start, 4),
            epsilon=None if self.account is None else self.account.epsilon(after.round),
            diagnostics=None if diagnostics is None else diagnostics.summary(),
            federation=None if traffic.counts is None else dict(traffic.counts),
            clip=None if private is None or not len(state.clips) else private.clip,
            waited_s=None if self.ranks.alone else round(result.waited_s, 4),
            virtual_s=clients.virtual_s,
            devices=clients.devices_summary,
        )
        return record if scores is None else replace(record, **scores.summary())

    def _evaluate(self, after: State) -> tuple[Evaluation | None, ClientScores | None]:
        """Evaluate the model, and clients, if that is due in this round or the run is over."""
        training, round_, last = self.training, after.round - 1, self.is_over(after.round)
        tests = self.task.held_out > 0 and not self.is_personal and (last or training.evaluates(round_))
        evaluation = self.evaluate(after) if tests else None
        asks = training.evaluates_clients(round_) or (last and training.client_evaluation > 0)
        return evaluation, self.evaluate_clients(after) if asks else None

    def tensors(self, state: State | None = None) -> dict[str, Tensor]:
        """All that is needed to resume from `state`: the present one, or the one before the last step."""
        state = state or self.state
        return {**state.tensors(), **self.clients.tensors(state.round)}

    def restore(self, saved: Saved) -> None:
        """Go to a saved state; InputError or CheckpointError if a tensor is missing or has another shape."""
        y, state, tensors = self.workspace.y, self.state, saved.tensors
        begun = self.training.diagnostics and saved.round > 0
        expected = state._replace(last=y if begun else y[:0]).tensors()
        for name, t in expected.items():
            if name not in tensors or tensors[name].shape != t.shape or tensors[name].dtype != t.dtype:
                raise InputError(f"the state has no {name} of shape {tuple(t.shape)} and type {t.dtype}")
        self.clients.restore(*saved)
        server = read_state(state.server, tensors, "server", y.device)
        others = {name: tensors[name].to(y.device) for name in State._fields if name in expected}
        self.state = state._replace(round=saved.round, server=server, **others)

    @property
    def is_personal(self) -> bool:
        """Whether clients keep parameters of their own, so that there is no global model to test."""
        return isinstance(self.algorithm, WithPersonal)

    def load(self, state: State | None = None) -> None:
        """Put the global model of `state`, by default the present one, into the module.

        Personal numbers are those of a client before its first round.
        """
        state = state or self.state
        self.parts.leave()
        model = state.server.x, state.statistics
        self.workspace.load(*(self.algorithm.complete(*model) if isinstance(self.algorithm, WithPersonal) else model))
        if self.folding is not None:
            self.folding.load(state.base)

    def evaluate(self, state: State | None = None) -> Evaluation:
        """Loss and metrics on the held-out set of the global model of `state`, by default the present one."""
        self.load(state)
        module, device = self.workspace.module, self.workspace.y.device
        return evaluate_held_out(self.task, module, self.training, device, self.ranks)

    def evaluate_clients(self, state: State | None = None) -> ClientScores | None:
        """Score the global model of `state`, by default the present one, on clients' own held-out samples."""
        state = state or self.state
        self.load(state)
        return self.clients.evaluate(self.parts.broadcast(state.round, state.server, state.statistics, state.base))

    def _new_private_mean(self, broadcast: Broadcast) -> PrivateMean | None:
        """The empty mean of a round with privacy of clients; None without."""
        if self.client_privacy is None:
            return None
        algorithm = self.algorithm if self.halves is None else self.halves.at(broadcast.round).algorithm
        return new_private_mean(self.client_privacy, shared_part(algorithm), broadcast, self.state.clips, self.ranks)

    def _train(
        self,
        sampled: Sequence[int],
        broadcast: Broadcast,
        listeners: Sequence[Listener],
        private: PrivateMean | None,
    ) -> RoundResult:
        device = self.workspace.y.device
        self.parts.enter(broadcast)
        if self.folding is not None:
            self.folding.load(broadcast.base)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            heard = [*self.listeners, *listeners]
            own = (self.clients, sampled, broadcast, self.aggregation, heard, private)
            result = run_round(*own, lr_at=self.training.lr_at)
        if sampled and private is not None and not result.answered:
            warnings.warn(ONLY_NOISE, stacklevel=3)
        return result

    def next_state(self, state: State, result: RoundResult, participation: float) -> State:
        """The state after a round that began with `state`; DivergedError if a number of it is not finite."""
        number = self.workspace.y.new_tensor
        share = number(participation)
        server = self.parts.server_update(state.round, state.server, result.up, number(result.lr), share)
        if result.aimed is not None and self.algorithm.adds_mean:
            lr = number(self.training.lr_at(state.round))
            aimed = self.parts.server_update(state.round, state.server, result.aimed, lr, share)
            server = take_directions(server, aimed)
        assert result.statistics is not None
        last = server.x - state.server.x if self.training.diagnostics else state.last
        base = state.base
        if self.folding is not None and result.product is not None:
            plain = torch.allclose(server.x, state.server.x + result.up.delta, rtol=1e-4, atol=1e-6)
            check(plain, f"lora.aggregate={self.folding.kind!r} {NOT_THE_MEAN}")
            base, x = self.folding.fold(base, result.product, server.x)
            server = server._replace(x=x)
        after = State(state.round + 1, server, result.statistics, last, base, state.clips)
        if not all_finite(state_tensors(server, "server").values()):
            outer = "" if self.training.outer is None else " or training.outer.lr"
            raise DivergedError(
                f"round {after.round}: the clients' mean is not finite; try a smaller training.lr{outer}"
            )
        return after

    def _initial_state(self) -> State:
        y = self.workspace.y
        base = y[:0] if self.folding is None else self.folding.base
        server = self.parts.server_init(self.workspace.shared.clone())
        privacy, parts = self.client_privacy, 1 if self.halves is None else 2
        clips = y.new_zeros(0) if privacy is None else privacy.first_clips(y, parts)
        return State(0, server, self.workspace.shared_statistics.clone(), y[:0].clone(), base.clone(), clips)

    def _state_of_rank_0(self) -> State:
        round_ = torch.tensor(float(self.state.round), dtype=torch.float64, device=self.workspace.y.device)
        self.ranks.broadcast([round_, *self.state.tensors().values()])
        return self.state._replace(round=int(round_))
