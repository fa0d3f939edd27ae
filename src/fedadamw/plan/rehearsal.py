"""A round rehearsed: the engine's own code runs on tensors without numbers, while a meter counts their bytes.

So whatever the algorithm, the engine, the model or the task holds at a time is counted, and nothing is allocated.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedadamw.algorithm import AnyState
from fedadamw.data.partition import Partition
from fedadamw.engine.client import Broadcast
from fedadamw.engine.round import RoundResult
from fedadamw.engine.simulate import Simulation, State
from fedadamw.engine.simulated import SimulatedClients
from fedadamw.engine.states import iterate_tensors
from fedadamw.engine.step import Kind, Step, clip_gradient, copy_all
from fedadamw.engine.workspace import autocast
from fedadamw.plan.data_shape import DataShape
from fedadamw.plan.meter import COPIES, LOGITS, Meter, Parts
from fedadamw.plan.pretended import PLACE, build_problem, pretend, without_numbers
from fedadamw.prepare.problem import Problem
from fedadamw.prepare.simulation import Prepared, assemble, choose_step, default_stack
from fedadamw.settings.data import LANGUAGE
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Batch, Model, Task
from fedadamw.vector import Vector, nbytes, trainable

BASE, TRAINED, SERVER, CLIENT = "frozen weights", "trained vector, gradient", "server's state", "client's state"
ACTIVATIONS, UPLOADS, STEP, BATCH = "activations", "mean of uploads", "local step", "batch"
MEMORIES = "clients' memories"
TRAINING, UPDATE, EVALUATION = "training", "server's update", "evaluation"
CLIENTS = 2  # rehearsed, of one step each: when the second one trains, all is there that stays


@dataclass(frozen=True)
class Rehearsal:
    """What a rank holds in a round, in bytes."""

    phases: Mapping[str, Parts]  # the parts at the peak of each phase
    between: Parts  # the parts between two rounds
    trained: int  # numbers that are trained, d
    frozen: int  # numbers that are not
    saved: int  # what a step keeps between forward and backward
    down_bytes: int  # to a client
    up_bytes: int  # from a client
    memory: int  # of a client between its rounds
    state: int  # of a checkpoint, without clients' memories
    step: Kind
    stack: int  # clients at once

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return max(sum(parts.values()) for parts in self.phases.values())


def rehearse(experiment: Experiment, data: DataShape, device: torch.device, stack: int | None = None) -> Rehearsal:
    """Rehearse a round of the experiment on `device`, with `stack` clients at once."""
    problem = build_problem(experiment, data)
    short = _shorten(experiment, stack or experiment.stack or default_stack(experiment, device))
    partition = _pretend_partition(experiment, data)
    vocabulary = getattr(getattr(problem.model, "config", None), "vocab_size", None)
    meter = Meter(BASE, logits=vocabulary if experiment.data.task == LANGUAGE else None)
    with warnings.catch_warnings(), without_numbers(), meter:
        warnings.simplefilter("ignore")  # the run gives them
        task = _MeteredTask(problem.task, meter)
        prepared = _assemble(short, problem._replace(task=task), partition, meter)
        d = prepared.workspace.layout.d
        step = choose_step(experiment, d, float(partition.sizes.mean()), device)
        with meter.part(SERVER):
            simulation = prepared.simulation(step="plain")
        clients: Any = simulation.clients
        clients.engine.step = _Step(simulation, step, device, meter)
        parts = experiment.training.batch_size / short.training.batch_size
        return _Round(simulation, clients, task, meter, parts).run(step, short.stack or 1)


def _shorten(experiment: Experiment, stack: int) -> Experiment:
    """Return the experiment with as few clients and steps as show what a round holds at a time."""
    t = experiment.training
    sampled = t.clients_per_round if stack > 1 or t.mean != "weighted" else min(CLIENTS, t.clients_per_round)
    at_once = min(t.micro_batch or t.batch_size, t.batch_size)
    changes: dict[str, object] = {"steps": 1, "epochs": None, "clients_per_round": sampled, "batch_size": at_once}
    changes["diagnostics"] = False
    if t.upload == "top-k":
        changes["upload"] = "int8"  # whose shapes do not depend on the numbers; both keep a residual
    if t.mean == "krum":
        changes["mean"] = "median"
    training = t.model_copy(update=changes)
    return experiment.model_copy(update={"training": training, "stack": stack})


def _pretend_partition(experiment: Experiment, data: DataShape) -> Partition:
    """Clients of equal sizes; without a known number of samples each has a whole batch."""
    clients = max(experiment.partition.clients, experiment.training.clients_per_round)
    each = max(data.samples // clients, 1) if data.samples else experiment.training.batch_size
    return Partition(np.zeros(clients * each, np.int64), np.arange(1, clients + 1) * each)


def _assemble(experiment: Experiment, problem: Problem, partition: Partition, meter: Meter) -> Prepared:
    with meter.part(BASE):
        model = pretend(problem.model)
    no_samples: Any = None
    with meter.part(TRAINED):
        prepared = assemble(experiment, problem._replace(model=model), no_samples, no_samples, partition, PLACE)
    meter.watch(model.parameters())
    return prepared


class _Step:
    """A local step that holds what the real one holds besides the state; on a CPU, and compiled, that is nothing."""

    def __init__(self, simulation: Simulation, kind: Kind, device: torch.device, meter: Meter) -> None:
        self._algorithm, self._clip, self._meter = simulation.algorithm, simulation.training.clip, meter
        in_place = kind == "compiled" or (device.type == "cpu" and kind == "fused")
        self._in_place = in_place and simulation.algorithm.elementwise

    def __call__(self, local: AnyState, down: AnyState, g: Vector, lr: Tensor) -> None:
        if not self._in_place:
            self._meter.name = STEP
            new = self._algorithm.client_step(local, down, clip_gradient(g, self._clip), lr)
            copy_all(zip(iterate_tensors(local), iterate_tensors(new), strict=True))
        self._meter.name = CLIENT


class _Round:
    """One rehearsed round."""

    def __init__(
        self, simulation: Simulation, clients: SimulatedClients, task: "_MeteredTask", meter: Meter, batches: float
    ) -> None:
        self.simulation, self.clients, self.task, self.meter = simulation, clients, task, meter
        self._batches = batches  # a step's batch, in micro-batches
        self.phases: dict[str, Parts] = {}
        self.up_bytes = self.memory = 0

    def run(self, step: Kind, stack: int) -> Rehearsal:
        """Run its phases, and return what they held."""
        simulation, meter = self.simulation, self.meter
        down_bytes, state = self._train_and_update()
        self._close(EVALUATION)
        d = simulation.workspace.layout.d
        return Rehearsal(
            phases=self.phases,
            between={part: size for part, size in meter.now.items() if size and part != MEMORIES},
            trained=d,
            frozen=sum(p.numel() for p in simulation.workspace.module.parameters()) - d,
            saved=self.task.saved,
            down_bytes=down_bytes,
            up_bytes=self.up_bytes,
            memory=self.memory,
            state=nbytes(state.tensors().values()),
            step=step,
            stack=stack if getattr(self.clients.engine, "stacks", False) else 1,
        )

    def _train_and_update(self) -> tuple[int, State]:
        """Run a round with its evaluation, as `Simulation.step` does; return the bytes down, and the new state."""
        simulation, state = self.simulation, self.simulation.state
        broadcast = Broadcast(0, simulation.algorithm.broadcast(state.server), state.statistics, state.base)
        result = self._train(broadcast)
        self._close(TRAINING)
        with self.meter.part(SERVER):
            after = simulation.next_state(state, result, 1e-3, 0.5)
        self._close(UPDATE)
        self._evaluate(after)
        simulation.state = after
        return broadcast.nbytes, after

    def _close(self, phase: str) -> None:
        """Note the peak of a phase, without the memories of the clients that took part in it."""
        most = {part: size for part, size in self.meter.most.items() if part != MEMORIES}
        if BATCH in most:
            most[BATCH] = round(most[BATCH] * self._batches)
        self.phases[phase] = most
        self.meter.restart()

    def _train(self, broadcast: Broadcast) -> RoundResult:
        """Train some clients and average their answers, as `run_round` does."""
        simulation, meter, up_type = self.simulation, self.meter, Any
        average = simulation.aggregation.new_average()
        meter.restart()
        meter.name = CLIENT
        for shard, answer in self.clients.train(range(simulation.training.clients_per_round), broadcast):
            tensors = simulation.aggregation.tensors(answer, broadcast.down)
            with meter.part(UPLOADS):
                average.add(tensors, 1.0)
            self.clients.accept(shard, answer)
            meter.move(answer.memory, MEMORIES)
            up_type, self.up_bytes, self.memory = type(answer.up), nbytes(answer.travels), nbytes(answer.memory)
            del answer, tensors
        with meter.part(UPLOADS):
            means = average.result()
        product = None if simulation.aggregation.folding is None else means.pop()
        *up, statistics, _ = means
        return RoundResult(up_type(*up), statistics.to(broadcast.statistics), product, 1.0, 1, 0, 0, {}, 0.0)

    def _evaluate(self, state: State) -> None:
        simulation, task = self.simulation, self.task
        simulation.load(state)
        module = simulation.workspace.module.eval()
        with self.meter.part(ACTIVATIONS), torch.no_grad(), autocast(simulation.training, PLACE):
            task.outputs(module, 0, task.held_out)


class _MeteredTask:
    """A task whose batches, and what the model makes of them, are counted as such."""

    resident, lengths = True, None

    def __init__(self, task: Task, meter: Meter) -> None:
        self._task, self._meter = task, meter
        self.held_out = task.held_out
        self.draw, self.outputs, self.score = task.draw, task.outputs, task.score
        self.saved = 0  # the most bytes that are kept for the backward pass

    def batch(self, samples: Tensor, drawn: Tensor) -> Batch:
        """Return the batch of these samples."""
        with self._meter.part(BATCH):
            return self._task.batch(samples, drawn)

    def losses(self, model: Model, batch: Batch) -> Tensor:
        """Return the losses; until the next local step, all that is made is for activations."""
        meter = self._meter
        meter.name = ACTIVATIONS
        losses = self._task.losses(model, batch)
        self.saved = max(self.saved, sum(meter.now[part] for part in (ACTIVATIONS, LOGITS, COPIES)))
        return losses
