"""One round whose bytes are counted by part and phase, by the engine's own code: real, or rehearsed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedadamw.engine.client import Broadcast
from fedadamw.engine.evaluation import GROUP
from fedadamw.engine.round import RoundResult
from fedadamw.engine.simulate import Simulation
from fedadamw.engine.state import State
from fedadamw.engine.workspace import autocast
from fedadamw.plan.meter import COPIES, GAPS, LOGITS, Meter, Parts
from fedadamw.task import Batch, Model, Task
from fedadamw.vector import nbytes

BASE, TRAINED, SERVER, CLIENT = "frozen weights", "trained vector, gradient", "server's state", "client's state"
ACTIVATIONS, UPLOADS, STEP, BATCH = "activations", "mean of uploads", "local step", "batch"
MEMORIES = "clients' memories"
TRAINING, UPDATE, EVALUATION = "training", "server's update", "evaluation"


@dataclass(frozen=True)
class Counts:
    """What a rank holds in a round, in bytes."""

    phases: Mapping[str, Parts]  # the parts at the peak of each phase
    between: Parts  # the parts between two rounds
    saved: int  # what a step keeps between forward and backward
    down_bytes: int  # to a client
    up_bytes: int  # from a client
    memory: int  # of a client between its rounds
    state: int  # of a checkpoint, without clients' memories
    stacked: bool  # whether clients trained at once

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return max(sum(parts.values()) for parts in self.phases.values())

    @property
    def tensors(self) -> int:
        """Bytes of tensors at the peak, without gaps between them."""
        return max(sum(parts.values()) - parts.get(GAPS, 0) for parts in self.phases.values())


class CountedRound:
    """One round, as `Simulation.step` runs it: real, or rehearsed on tensors without numbers."""

    def __init__(self, simulation: Simulation, task: "CountedTask", meter: Meter, batches: float = 1.0) -> None:
        self.simulation, self.clients, self.task, self.meter = simulation, simulation.clients, task, meter
        self._batches = batches  # a step's batch, in micro-batches
        self.phases: dict[str, Parts] = {}
        self.down_bytes = self.up_bytes = self.memory = 0

    def run(self) -> Counts:
        """Run its phases, and return what they held."""
        state = self._train_and_update()
        self._close(EVALUATION)
        return Counts(
            phases=self.phases,
            between={part: size for part, size in self.meter.now.items() if size and part != MEMORIES},
            saved=self.task.saved,
            down_bytes=self.down_bytes,
            up_bytes=self.up_bytes,
            memory=self.memory,
            state=nbytes(state.tensors().values()),
            stacked=self.task.stacked,
        )

    def _train_and_update(self) -> State:
        """Run a round with its evaluation, as `Simulation.step` does; return the new state."""
        simulation, state = self.simulation, self.simulation.state
        broadcast = simulation.parts.broadcast(0, state.server, state.statistics, state.base)
        result = self._train(broadcast)
        self._close(TRAINING)
        with self.meter.part(SERVER):
            after = simulation.next_state(state, result, 0.5)
        self._close(UPDATE)
        self._evaluate(after)
        simulation.state = after
        return after

    def _close(self, phase: str) -> None:
        """Note the peak of a phase, without the memories of the clients that took part in it."""
        most = {part: size for part, size in self.meter.most.items() if part != MEMORIES}
        if BATCH in most:
            most[BATCH] = round(most[BATCH] * self._batches)
        if self.meter.resident > self.meter.peak:
            most[GAPS] = self.meter.resident - self.meter.peak
        self.phases[phase] = most
        self.meter.restart()

    def _train(self, broadcast: Broadcast) -> RoundResult:
        """Train some clients and average their answers, as `run_round` does."""
        simulation, meter, up_type = self.simulation, self.meter, Any
        average = simulation.aggregation.new_average()
        meter.restart()
        meter.name = CLIENT
        sampled = self.clients.sample(0)
        simulation.parts.enter(broadcast)
        for shard, answer in self.clients.train(sampled, broadcast):
            tensors = simulation.aggregation.tensors(shard.client, answer, broadcast.down)
            with meter.part(UPLOADS):
                average.add(tensors, 1.0)
            self.clients.accept(shard, answer)
            meter.move(answer.memory, MEMORIES)
            up_type, self.up_bytes, self.memory = type(answer.up), nbytes(answer.travels), nbytes(answer.memory)
            del answer, tensors
        self.down_bytes = self.clients.traffic.down_bytes // len(sampled)
        with meter.part(UPLOADS):
            means = simulation.aggregation.read(average.result(), up_type, broadcast.statistics)
        return RoundResult(*means[:3], 1.0, 1, 0, 0, {}, 0.0, 1e-3)

    def _evaluate(self, state: State) -> None:
        simulation, task = self.simulation, self.task
        if simulation.is_personal and not simulation.training.client_evaluation:
            return
        simulation.load(state)
        module = simulation.workspace.module.eval()
        with (
            self.meter.part(ACTIVATIONS),
            torch.no_grad(),
            autocast(simulation.training, simulation.workspace.y.device),
        ):
            task.outputs(module, 0, task.held_out)
            if simulation.training.client_evaluation:
                task.outputs_of(module, torch.zeros(GROUP, dtype=torch.int64))


class CountedTask:
    """A task whose batches, and what the model makes of them, are counted as such."""

    def __init__(self, task: Task, meter: Meter) -> None:
        self._task, self._meter = task, meter
        self.resident, self.lengths = task.resident, task.lengths
        self.held_out = task.held_out
        self.draw, self.outputs, self.score = task.draw, task.outputs, task.score
        self.outputs_of, self.sums, self.pool = task.outputs_of, task.sums, task.pool
        self.check_sums, self.unpooled = task.check_sums, task.unpooled
        self.saved = 0  # the most bytes that are kept for the backward pass
        self.stacked = False  # whether clients were trained at once

    def batch(self, samples: Tensor, drawn: Tensor) -> Batch:
        """Return the batch of these samples."""
        with self._meter.part(BATCH):
            return self._task.batch(samples, drawn)

    def losses(self, model: Model, batch: Batch) -> Tensor:
        """Return the losses; until the next local step, all that is made is for activations."""
        meter = self._meter
        meter.name, self.stacked = ACTIVATIONS, not isinstance(model, nn.Module)
        losses = self._task.losses(model, batch)
        self.saved = max(self.saved, sum(meter.now[part] for part in (ACTIVATIONS, LOGITS, COPIES)))
        return losses


def count_round(simulation: Simulation, *, logits: int | None = None) -> Counts:
    """Run a round of `simulation` and count what it holds; logits: the size of a language model's vocabulary."""
    meter = Meter(CLIENT, logits=logits)
    task: Any = CountedTask(simulation.task, meter)
    clients: Any = simulation.clients
    simulation.task = clients.engine.task = task
    work, module = simulation.workspace, simulation.workspace.module
    meter.count([work.y, work.gradient, work.statistics], TRAINED)
    meter.count(simulation.state.tensors().values(), SERVER)
    meter.count([*module.parameters(), *module.buffers()], BASE)
    meter.watch(module.parameters())
    with meter:
        return CountedRound(simulation, task, meter).run()
