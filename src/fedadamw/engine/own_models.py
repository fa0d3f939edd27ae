"""Models that clients have of their own, put into the module one after the other: kept ones, and tuned ones."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import torch

from fedadamw.algorithm import AnyAlgorithm, AnyState
from fedadamw.engine.client import Broadcast, Shard
from fedadamw.engine.personal import STATISTICS, WithPersonal
from fedadamw.engine.uploads import Engine
from fedadamw.engine.workspace import Workspace
from fedadamw.settings.training import TrainingSettings
from fedadamw.vector import Vector


def has_own_models(algorithm: AnyAlgorithm) -> bool:
    """Whether a client's model is not the global one."""
    return isinstance(algorithm, WithPersonal) or algorithm.own_model is not None


def own_model(algorithm: AnyAlgorithm, x: Vector, statistics: Vector, memory: AnyState | None) -> tuple[Vector, Vector]:
    """Return the model (d,) of the client with this memory and all its running statistics.

    x, statistics: what the server has. memory: None before the client's first round.
    """
    if isinstance(algorithm, WithPersonal):
        return algorithm.complete(x, statistics, memory)
    if algorithm.own_model is None or memory is None:
        return x, statistics
    return getattr(memory, algorithm.own_model).to(x.device), statistics


def enter_own(
    workspace: Workspace,
    algorithm: AnyAlgorithm,
    clients: Iterable[int],
    memories: Iterable[AnyState | None],
    mine: Collection[int],
) -> Iterator[int]:
    """Yield each client of this rank when its own model is in the module, which has the global one at first.

    memories: of all `clients`. mine: this rank's places among them.
    """
    x, statistics = workspace.shared.clone(), workspace.shared_statistics.clone()
    for place, (client, memory) in enumerate(zip(clients, memories, strict=True)):
        if place in mine:
            workspace.load(*own_model(algorithm, x, statistics, memory))
            yield client


def enter_tuned(
    workspace: Workspace, algorithm: AnyAlgorithm, engine: Engine, shards: Iterable[Shard], broadcast: Broadcast
) -> Iterator[int]:
    """Yield each client when the module has what its local steps make of its model."""
    for shard, answer in engine.train(shards, broadcast):
        own = getattr(answer.memory, STATISTICS, answer.statistics[:0])
        tuned = answer.local.y if algorithm.own_model is None else getattr(answer.memory, algorithm.own_model)
        workspace.load(tuned, torch.cat([answer.statistics, own]))
        yield shard.client


def for_tuning(training: TrainingSettings, steps: int) -> TrainingSettings:
    """Return the settings of so many local steps with the peak learning rate."""
    changes = {"steps": steps, "epochs": None, "schedule": "constant", "warmup_rounds": 0, "diagnostics": False}
    return training.model_copy(update=changes)


@contextmanager
def restored(workspace: Workspace) -> Iterator[None]:
    """A context after which the module's model and torch's random numbers are what they were."""
    y, statistics, device = workspace.y.clone(), workspace.statistics.clone(), workspace.y.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    workspace.load(y, statistics)
