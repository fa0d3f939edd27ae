"""A round rehearsed: the engine's own code runs on tensors without numbers, while a meter counts their bytes.

So whatever the algorithm, the engine, the model or the task holds at a time is counted, and nothing is allocated.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedadamw.algorithm import AnyAlgorithm, AnyState
from fedadamw.data.partition import Partition
from fedadamw.engine.client import Broadcast
from fedadamw.engine.parts import InTurn
from fedadamw.engine.portions import CroppedStep
from fedadamw.engine.round import RoundResult
from fedadamw.engine.simulate import Simulation, State
from fedadamw.engine.states import iterate_tensors
from fedadamw.engine.step import Kind, clip_gradient, copy_all
from fedadamw.engine.workspace import autocast
from fedadamw.plan.data_shape import DataShape
from fedadamw.plan.meter import COPIES, LOGITS, Meter, Parts
from fedadamw.plan.pretended import PLACE, build_problem, find_output, pretend, without_numbers
from fedadamw.prepare.problem import Problem
from fedadamw.prepare.simulation import Prepared, assemble, choose_step, default_stack
from fedadamw.settings.data import LANGUAGE
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Batch, Model, Task
from fedadamw.vector import Vector, nbytes

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
        prepared = _assemble(short, problem, partition, meter)
        task: Any = prepared.task
        d = prepared.workspace.layout.d
        step = choose_step(experiment, d, float(partition.sizes.mean()), device)
        with meter.part(SERVER):
            simulation = prepared.simulation(step="plain")
        in_place = step == "compiled" or (device.type == "cpu" and step == "fused")
        _replace_steps(simulation, meter, in_place=in_place)
        parts = experiment.training.batch_size / short.training.batch_size
        return _Round(simulation, task, meter, parts).run(step, short.stack or 1)


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
    unpacked = experiment.data.model_copy(update={"packing": False})  # texts that are all as long as a row
    return experiment.model_copy(update={"training": training, "data": unpacked, "stack": stack, "shards": 1})


def _pretend_partition(experiment: Experiment, data: DataShape) -> Partition:
    """Clients of equal sizes; without a known number of samples each has a whole batch."""
    clients = max(experiment.partition.clients, experiment.training.clients_per_round)
    each = max(data.samples // clients, 1) if data.samples else experiment.training.batch_size
    return Partition(np.zeros(clients * each, np.int64), np.arange(1, clients + 1) * each)


def _assemble(experiment: Experiment, problem: Problem, partition: Partition, meter: Meter) -> Prepared:
    with meter.part(BASE):
        model = pretend(problem.model)
    find_output(model, problem.task)
    no_samples: Any = None
    with meter.part(TRAINED):
        metered = Problem(model, _MeteredTask(problem.task, meter), problem.facts)
        prepared = assemble(experiment, metered, no_samples, no_samples, partition, PLACE)
    meter.watch(model.parameters())
    return prepared


class _Step:
    """A local step that holds what the real one holds besides the state; on a CPU, and compiled, that is nothing."""

    def __init__(self, algorithm: AnyAlgorithm, clip: float | None, meter: Meter, *, in_place: bool) -> None:
        self._algorithm, self._clip, self._meter = algorithm, clip, meter
        self._in_place = in_place and algorithm.elementwise

    def __call__(self, local: AnyState, down: AnyState, g: Vector, lr: Tensor) -> None:
        if not self._in_place:
            self._meter.name = STEP
            new = self._algorithm.client_step(local, down, clip_gradient(g, self._clip), lr)
            copy_all(zip(iterate_tensors(local), iterate_tensors(new), strict=True))
        self._meter.name = CLIENT


def _replace_steps(simulation: Simulation, meter: Meter, *, in_place: bool) -> None:
    """Make the engines take rehearsed steps. in_place: whether the real ones need no temporary vectors."""
    every: Any = simulation.clients.halves if isinstance(simulation.clients, InTurn) else [simulation.clients]
    for clients in every:
        for engine in (clients.engine, getattr(clients.engine, "fallback", None)):
            if engine is not None:
                step = _Step(engine.algorithm, simulation.training.clip, meter, in_place=in_place)
                if isinstance(engine.step, CroppedStep):
                    engine.step.step = step
                else:
                    engine.step = step


class _Round:
    """One rehearsed round."""

    def __init__(self, simulation: Simulation, task: "_MeteredTask", meter: Meter, batches: float) -> None:
        self.simulation, self.clients, self.task, self.meter = simulation, simulation.clients, task, meter
        self._batches = batches  # a step's batch, in micro-batches
        self.phases: dict[str, Parts] = {}
        self.down_bytes = self.up_bytes = self.memory = 0

    def run(self, step: Kind, stack: int) -> Rehearsal:
        """Run its phases, and return what they held."""
        simulation, meter = self.simulation, self.meter
        state = self._train_and_update()
        self._close(EVALUATION)
        d = simulation.workspace.layout.d
        return Rehearsal(
            phases=self.phases,
            between={part: size for part, size in meter.now.items() if size and part != MEMORIES},
            trained=d,
            frozen=sum(p.numel() for p in simulation.workspace.module.parameters()) - d,
            saved=self.task.saved,
            down_bytes=self.down_bytes,
            up_bytes=self.up_bytes,
            memory=self.memory,
            state=nbytes(state.tensors().values()),
            step=step,
            stack=stack if self.task.stacked else 1,
        )

    def _train_and_update(self) -> State:
        """Run a round with its evaluation, as `Simulation.step` does; return the new state."""
        simulation, state = self.simulation, self.simulation.state
        broadcast = simulation.parts.broadcast(0, state.server, state.statistics, state.base)
        result = self._train(broadcast)
        self._close(TRAINING)
        with self.meter.part(SERVER):
            after = simulation.next_state(state, result, 1e-3, 0.5)
        self._close(UPDATE)
        self._evaluate(after)
        simulation.state = after
        return after

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
