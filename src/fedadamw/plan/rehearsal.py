"""A round rehearsed: the engine's own code runs on tensors without numbers, while a meter counts their bytes.

So whatever the algorithm, the engine, the model or the task holds at a time is counted, and nothing is allocated.
"""

import warnings
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedadamw.algorithm import AnyAlgorithm, AnyState
from fedadamw.data.answers import WRITTEN
from fedadamw.data.partition import Partition
from fedadamw.data.text_tasks import LanguageTask
from fedadamw.engine.parts import InTurn
from fedadamw.engine.personal import list_parts
from fedadamw.engine.portions import CroppedStep
from fedadamw.engine.shards import find_layers
from fedadamw.engine.simulate import Simulation
from fedadamw.engine.states import iterate_tensors
from fedadamw.engine.step import Kind, clip_gradient, copy_all
from fedadamw.models.loading import MAX_REASON_CHARACTERS
from fedadamw.plan.counted import BASE, CLIENT, SERVER, STEP, TRAINED, CountedRound, CountedTask, Counts
from fedadamw.plan.data_shape import DataShape
from fedadamw.plan.depth import extend, find_depth
from fedadamw.plan.heap import Heap
from fedadamw.plan.meter import Meter
from fedadamw.plan.pretended import PLACE, build_problem, find_output, pretend, whole_weights, without_numbers
from fedadamw.prepare.choices import choose_step, default_stack
from fedadamw.prepare.client_privacy import has_client_privacy
from fedadamw.prepare.counter import has_unequal_steps, tell_unequal_steps
from fedadamw.prepare.problem import Problem
from fedadamw.prepare.simulation import Prepared, assemble
from fedadamw.settings.data import LANGUAGE
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import InputError
from fedadamw.vector import Vector, nbytes

CLIENTS = 2  # rehearsed, of one step each: when the second one trains, all is there that stays


@dataclass(frozen=True)
class Rehearsal:
    """What a rank will hold in a round, and how clients train."""

    counts: Counts
    trained: int  # numbers that are trained, d
    frozen: int  # numbers that are not
    layers: int  # bytes of the frozen weights that shards split
    layer: int  # of them, in the largest layer
    cache: int  # bytes of keys and values while a batch of answers is written
    step: Kind
    stack: int  # clients at once


class NotPlannedError(InputError):
    """A model whose code cannot run on tensors without numbers; it may train nevertheless."""


def rehearse(experiment: Experiment, data: DataShape, device: torch.device, stack: int | None = None) -> Rehearsal:
    """Rehearse a round of the experiment on `device`, with `stack` clients at once, or raise NotPlannedError."""
    stack = stack or experiment.stack or default_stack(experiment, device)
    try:
        return _rehearse_all_layers(experiment, data, device, stack)
    except InputError:
        raise
    except Exception as error:  # the model's code may raise anything if it looks at numbers that are not there
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise NotPlannedError(
            f"model.name={experiment.model.name!r} cannot be planned ({why[:MAX_REASON_CHARACTERS]})"
        ) from error


def _rehearse_all_layers(experiment: Experiment, data: DataShape, device: torch.device, stack: int) -> Rehearsal:
    depth = find_depth(experiment)
    if depth is None:
        return _rehearse(experiment, data, device, stack, None)
    few, twice = (_rehearse(experiment, data, device, stack, n) for n in (depth.few, 2 * depth.few))
    names = ("trained", "frozen", "layers", "cache")
    whole: Any = {n: round(getattr(few, n) + (getattr(twice, n) - getattr(few, n)) * depth.more) for n in names}
    return replace(few, counts=extend(few.counts, twice.counts, depth.more), **whole)


def _rehearse(
    experiment: Experiment, data: DataShape, device: torch.device, stack: int, layers: int | None
) -> Rehearsal:
    """Rehearse a round with a model of so many layers; None: of all."""
    problem, short = build_problem(experiment, data, layers), _shorten(experiment, stack)
    partition = _pretend_partition(experiment, data)
    numbers = sum(p.numel() for p in problem.model.parameters())
    vocabulary = getattr(getattr(problem.model, "config", None), "vocab_size", None)
    logits = vocabulary if experiment.data.task == LANGUAGE else None
    meter = Meter(BASE, logits=logits, heap=Heap() if device.type == "cpu" else None)
    with warnings.catch_warnings(), without_numbers(), whole_weights(experiment), meter:
        warnings.simplefilter("ignore")  # the run gives them
        prepared = _assemble(short, problem, partition, meter, unequal=has_unequal_steps(experiment, partition))
        d = prepared.workspace.layout.d
        step = choose_step(experiment, d, float(partition.sizes.mean()), device)
        with meter.part(SERVER):
            simulation = prepared.simulation(step="plain")
        in_place = step == "compiled" or (device.type == "cpu" and step == "fused")
        _replace_steps(simulation, meter, in_place=in_place)
        parts = experiment.training.batch_size / short.training.batch_size
        task: Any = prepared.task
        counts = CountedRound(simulation, task, meter, parts).run()
    sizes = _sizes_of_layers(problem.model)
    return Rehearsal(
        counts,
        d,
        numbers - d,
        sum(sizes),
        max(sizes, default=0),
        _size_of_cache(experiment, problem),
        step,
        stack if counts.stacked else 1,
    )


def _size_of_cache(experiment: Experiment, problem: Problem) -> int:
    """Return the bytes of the keys and values of a batch of prompts of the longest length, with their answers."""
    data, task = experiment.data, problem.task
    if not isinstance(task, LanguageTask) or not any(name in WRITTEN for name in data.metrics):
        return 0
    model: Any = problem.model
    config, tokens = model.config, task.texts.longest + data.answer_tokens
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = 2 * config.num_hidden_layers * heads * width
    return int(task.test_batch_size * tokens * numbers * next(model.parameters()).element_size())


def _sizes_of_layers(model: nn.Module) -> list[int]:
    """Return the bytes of the frozen weights of each layer that shards split."""
    return [nbytes(p for p in layer.parameters() if not p.requires_grad) for layer in find_layers(model)]


def _shorten(experiment: Experiment, stack: int) -> Experiment:
    """Return the experiment with as few clients and steps as show what a round holds at a time."""
    t = experiment.training
    sampled = t.clients_per_round if stack > 1 or t.mean != "weighted" else min(CLIENTS, t.clients_per_round)
    rows = -(-_largest_batch(experiment) // experiment.shards)  # of a batch, that one process computes
    at_once = min(t.micro_batch or rows, rows)
    changes: dict[str, object] = {"steps": 1, "epochs": None, "clients_per_round": sampled, "batch_size": at_once}
    changes |= {"diagnostics": False, "group_by_length": False}
    changes["aggregation"] = "synchronous"  # a version is as large
    if t.upload == "top-k":
        changes["upload"] = "int8"  # whose shapes do not depend on the numbers; both keep a residual
    if t.mean == "krum":
        changes["mean"] = "median"
    others: dict[str, object] = {"training": t.model_copy(update=changes), "stack": stack, "shards": 1}
    others["devices"] = None  # whose steps would be taken
    if has_client_privacy(experiment):
        others["privacy"] = None  # so that a round has as many clients as it has on average
    elif experiment.privacy is not None:  # how much noise it is does not matter
        others["privacy"] = experiment.privacy.model_copy(update={"noise_multiplier": 1.0, "epsilon": None})
    return experiment.model_copy(update=others)


def _largest_batch(experiment: Experiment) -> int:
    """Return the size of a step's batch; with privacy, whose batches are drawn at random, one that few exceed."""
    size, privacy = experiment.training.batch_size, experiment.privacy
    return size if privacy is None or privacy.unit == "client" else size + 3 * isqrt(size)


def _pretend_partition(experiment: Experiment, data: DataShape) -> Partition:
    """Clients of equal sizes; without a known number of samples each has a whole batch."""
    clients = max(experiment.partition.clients, experiment.training.clients_per_round)
    own = 1 - experiment.partition.held_out
    each = max(int(data.samples // clients * own), 1) if data.samples else _largest_batch(experiment)
    if experiment.privacy is not None:
        each = min(each, _largest_batch(experiment))  # so that all are in each batch
    return Partition(np.zeros(clients * each, np.int64), np.arange(1, clients + 1) * each)


def _assemble(
    experiment: Experiment, problem: Problem, partition: Partition, meter: Meter, *, unequal: bool
) -> Prepared:
    """Prepare the shortened experiment; unequal: whether clients of the real one take unequal numbers of steps."""
    with meter.part(BASE):
        model = pretend(problem.model)
    find_output(model, problem.task)
    no_samples: Any = None
    with meter.part(TRAINED):
        metered = Problem(model, CountedTask(problem.task, meter), problem.facts)
        prepared = assemble(experiment, metered, no_samples, no_samples, partition, PLACE)
    meter.watch(model.parameters())
    algorithm = tell_unequal_steps(prepared.algorithm, prepared.halves, unequal=unequal)
    return replace(prepared, algorithm=algorithm)


class _Step:
    """A local step that holds what the real one holds besides the state; on a CPU, and compiled, that is nothing."""

    def __init__(self, algorithm: AnyAlgorithm, clip: float | None, meter: Meter, *, in_place: bool) -> None:
        self._algorithm, self._clip, self._meter = algorithm, clip, meter
        self._in_place = in_place and all(part.elementwise for part in list_parts(algorithm))

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
                if engine.sums is not None:
                    engine.sums.has_numbers = False
                step = _Step(engine.algorithm, simulation.training.clip, meter, in_place=in_place)
                if isinstance(engine.step, CroppedStep):
                    engine.step.step = step
                else:
                    engine.step = step
