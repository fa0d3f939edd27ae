"""One small job per algorithm, and what its ranks send each other, call by call."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fedadamw.algorithms import registry
from fedadamw.algorithms.classes import NO_BLOCKS
from fedadamw.blocks.blocks import Blocks
from fedadamw.data.image_task import ImageTask
from fedadamw.data.images import Images
from fedadamw.data.partition import Partition
from fedadamw.engine.ranks import current_team
from fedadamw.engine.simulate import Simulation
from fedadamw.models import vision
from fedadamw.models.loading import build_seeded
from fedadamw.models.lora.adapters import add_adapters
from fedadamw.settings.lora import LoraSettings
from fedadamw.settings.training import TrainingSettings
from fedadamw.vector import Layout

ROUNDS, CLIENTS, HELD_OUT, CLASSES = 4, 16, 64, 10  # every client is sampled, so from round 2 on all remember
OPERATIONS = ("all_reduce", "broadcast")


class Job(NamedTuple):
    """What differs between the jobs."""

    algorithm: str
    lora: bool = False
    unequal: bool = False  # clients of 2 to 64 samples that train an epoch; else equal ones, two steps


JOBS = {
    "fedadamw": Job("fedadamw"),
    "unequal": Job("fedadamw", unequal=True),
    "scaffold": Job("scaffold"),
    "lora": Job("fedadamw", lora=True),
}


class Call(NamedTuple):
    """A call of torch.distributed."""

    operation: str
    nbytes: int


def run_job(name: str) -> dict[str, Any]:
    """Run a job as one rank; return what was sent at the start, in a round, and by its evaluation."""
    job = JOBS[name]
    with record_calls() as calls:
        ranks = current_team(torch.device("cpu"))
        simulation = make_simulation(job, ranks)
        start = calls.copy()
        found, parts = [], []
        for _ in range(ROUNDS):
            calls.clear()
            found.append(simulation.step())
            parts.append(calls.copy())
        calls.clear()
        simulation.evaluate()
        evaluation = calls.copy()
    digests = gather_digests(simulation.state.server.x)
    return {
        "d": Layout.of(simulation.workspace.module).d,
        "sampled": CLIENTS,
        "held_out": HELD_OUT,
        "classes": CLASSES,
        "start": add_up(start),
        "round": add_up(parts[1]),
        "evaluation": add_up(evaluation),
        "losses": [record.train_loss for record in found],
        "waited_share": [round((record.waited_s or 0.0) / record.wall_s, 3) for record in found],
        "digests": digests,
    }


@contextmanager
def record_calls() -> Iterator[list[Call]]:
    """A context in which the calls of torch.distributed are listed, as they come."""
    calls: list[Call] = []
    originals = {name: getattr(dist, name) for name in OPERATIONS}

    def recording(name: str) -> Any:
        def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            calls.append(Call(name, tensor.numel() * tensor.element_size()))
            return originals[name](tensor, *args, **kwargs)

        return call

    for name in OPERATIONS:
        setattr(dist, name, recording(name))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


def add_up(calls: list[Call]) -> dict[str, dict[str, int]]:
    """Calls and bytes by operation."""
    return {
        name: {
            "calls": sum(call.operation == name for call in calls),
            "bytes": sum(call.nbytes for call in calls if call.operation == name),
        }
        for name in OPERATIONS
    }


def gather_digests(x: Tensor) -> list[str]:
    """A digest of every rank's model."""
    digest = hashlib.sha256(x.numpy().tobytes()).hexdigest()[:16]
    if not dist.is_initialized():
        return [digest]
    digests = [""] * dist.get_world_size()
    dist.all_gather_object(digests, digest)
    return digests


def make_simulation(job: Job, ranks: Any) -> Simulation:
    """The job on this rank."""
    model = build_seeded(lambda: make_model(lora=job.lora), 0)
    sizes = np.geomspace(2, 64, CLIENTS).astype(int) if job.unequal else np.full(CLIENTS, 10)
    n = int(sizes.sum())
    pixels = np.random.default_rng(0).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    data = Images(pixels, np.arange(n) % CLASSES, tuple(map(str, range(CLASSES))))
    task = ImageTask(data, data.select(np.arange(HELD_OUT) % n), device=torch.device("cpu"))
    training = TrainingSettings(
        rounds=ROUNDS,
        clients_per_round=CLIENTS,
        steps=None if job.unequal else 2,
        epochs=1 if job.unequal else None,
        batch_size=5,
        evaluate_every=ROUNDS,
    )
    blocks = Blocks.of(model) if registry.needs_blocks(job.algorithm) else NO_BLOCKS
    algorithm = registry.make(job.algorithm, registry.settings_of(job.algorithm), blocks)
    return Simulation.in_process(
        model, algorithm, task, Partition(np.arange(n), np.cumsum(sizes)), training, ranks=ranks
    )


def make_model(*, lora: bool) -> nn.Module:
    """A small ViT, or adapters on its queries and values and a head."""
    model = vision.build("vit-nano", vision.ImageShape(32, 3, CLASSES)).model
    settings = LoraSettings(target_modules=("q_proj", "v_proj"), dropout=0.0)
    return add_adapters(model, settings, None) if lora else model
