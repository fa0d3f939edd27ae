"""One client in one round: what it receives, the local steps it takes, what it answers; the same in every engine."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedadamw.algorithm import AnyState
from fedadamw.engine.likelihood import Sums
from fedadamw.engine.private_gradient import SamplePrivacy
from fedadamw.engine.workspace import Workspace, check_not_single
from fedadamw.randomness import (
    Purpose,
    draw_batches,
    draw_poisson_batches,
    numpy_generator,
    seed_modules,
    seed_modules_by,
    torch_generator,
    torch_seed,
)
from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Task
from fedadamw.vector import Vector, all_finite, nbytes


class Broadcast(NamedTuple):
    """What the server sends to each sampled client of a round."""

    round: int  # from 0
    down: AnyState  # the algorithm's Down
    statistics: Vector  # (s,) BatchNorm's running statistics
    base: Vector  # (w,) frozen weights that change between rounds; (0,) if none do

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that travel."""
        return nbytes((*self.down, self.statistics, self.base))


class Shard(NamedTuple):
    """One sampled client: its samples, and what it remembers."""

    client: int
    samples: np.ndarray  # (n,) sample numbers
    memory: AnyState  # what the algorithm left there, or None before the first round
    statistics: Vector | None = None  # (s,) that it starts from, if not those of the broadcast
    repeat: int = 0  # how often it trained from this broadcast before
    steps: int | None = None  # its local steps, if not training's


class Answer(NamedTuple):
    """What one client's round returns."""

    up: AnyState  # the algorithm's Up, as the server has it
    memory: AnyState
    statistics: Vector  # (s,)
    loss: Tensor  # () mean over the local steps; NaN with privacy of samples, which does not account for it
    samples: int
    local: AnyState  # the algorithm's Local after the last step, for diagnostics
    payload: Mapping[str, Tensor] | None = None  # the encoded `up`, if a codec is used
    likelihood: Sums | None = None  # of its gradients, for diagnostics, if a second moment was carried to the round
    kept: Sequence[Tensor] = ()  # what the client keeps of its model
    steps: int = 0  # its local steps, K_i
    version: int | None = None  # the round whose broadcast it trained from, if not the present one's
    discount: float = 1.0  # of its weight, for its staleness

    @property
    def travels(self) -> Sequence[Tensor]:
        """The tensors that are sent."""
        return (*(self.up if self.payload is None else self.payload.values()), self.statistics)

    @property
    def finite(self) -> bool:
        """Whether every number of `up`, the statistics and what is kept of the model is finite."""
        return all_finite((*self.up, self.statistics, *self.kept))


class LocalWork(NamedTuple):
    """The batches of a client's local steps in one round, drawn beforehand on the CPU."""

    samples: Tensor  # (total,) sample numbers, batch after batch
    drawn: Tensor  # (total, r) what the task drew for each
    sizes: tuple[int, ...]  # of the batches

    def to(self, device: torch.device) -> "LocalWork":
        """The same on `device`."""
        return LocalWork(self.samples.to(device), self.drawn.to(device), self.sizes)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(samples, drawn) of each local step."""
        return zip(self.samples.split(self.sizes), self.drawn.split(self.sizes), strict=True)


def plan_work(
    task: Task,
    training: TrainingSettings,
    seed: int,
    client: int,
    samples: np.ndarray,
    round_: int,
    workspace: Workspace | None = None,
    privacy: SamplePrivacy | None = None,
    repeat: int = 0,
    steps: int | None = None,
) -> LocalWork:
    """The local work of `client` with `samples` (n,) in round `round_`.

    workspace: if its BatchNorm rejects a batch of one sample, such a batch is merged into the one before.
    privacy: each sample is in each batch with a probability; batches may be empty; all clients take training's steps.
    repeat, steps: see Shard.
    """
    keys = (round_, client, repeat)
    if privacy is not None:
        return _plan_private_work(task, training, client, samples, round_, privacy)
    parts = draw_batches(
        samples,
        numpy_generator(seed, Purpose.BATCHES, *keys),
        batch_size=training.batch_size,
        steps=steps or training.steps,
        epochs=training.epochs,
    )
    order = torch.from_numpy(np.concatenate(parts))
    sizes = tuple(len(part) for part in parts)
    if workspace is not None and 1 in sizes and not workspace.trains_on_one_sample(task, int(samples[0])):
        check_not_single(training, client, len(samples))
        warnings.warn("BatchNorm needs two samples: a batch of one is merged into the batch before", stacklevel=2)
        sizes = merge_single_samples(sizes)
    if training.group_by_length and task.lengths is not None:
        generator = torch_generator(seed, Purpose.GROUPING, *keys, device=torch.device("cpu"))
        order, sizes = group_by_length(order, sizes, task.lengths, generator)
    drawn = task.draw(len(order), torch_generator(seed, Purpose.AUGMENT, *keys, device=torch.device("cpu")))
    return LocalWork(order, drawn, sizes)


def _plan_private_work(
    task: Task, training: TrainingSettings, client: int, samples: np.ndarray, round_: int, privacy: SamplePrivacy
) -> LocalWork:
    """As `plan_work`, with privacy.

    Nobody may know what the task draws for a sample either: with one sample less, the draws of the others move.
    """
    assert training.steps is not None  # see check_privacy, which allows no other steps either
    entropy = privacy.entropy
    generator = entropy.numpy(Purpose.PRIVATE_BATCHES, round_, client)
    parts = draw_poisson_batches(samples, generator, rate=privacy.rate(len(samples)), steps=training.steps)
    order = torch.from_numpy(np.concatenate(parts))
    drawn = task.draw(len(order), entropy.torch(Purpose.AUGMENT, round_, client, device=torch.device("cpu")))
    return LocalWork(order, drawn, tuple(len(part) for part in parts))


def seed_module(
    seed: int,
    round_: int,
    client: int,
    device: torch.device,
    privacy: SamplePrivacy | None = None,
    member: int = 0,
    repeat: int = 0,
) -> None:
    """Seed what a module drops at random in a client's round; with privacy nobody may know it, as above.

    member: this process's place among those that train the client. repeat: see Shard.
    """
    if privacy is not None:
        seed_modules_by(privacy.entropy.torch(Purpose.MODULE, round_, client, device=device))
    else:
        seed_modules(torch_seed(seed, Purpose.MODULE, round_, client, repeat) + member, device)


def merge_single_samples(sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes of the batches after each batch of one sample has been merged into the one before."""
    merged: list[int] = []
    for size in sizes:
        if size == 1:
            merged[-1] += 1
        else:
            merged.append(size)
    return tuple(merged)


def group_by_length(
    order: Tensor, sizes: Sequence[int], lengths: Tensor, generator: torch.Generator
) -> tuple[Tensor, tuple[int, ...]]:
    """The same samples in batches of the same sizes, each of samples of similar length, in random order."""
    parts = order[torch.argsort(lengths[order], stable=True)].split(tuple(sizes))
    shuffled = [parts[i] for i in torch.randperm(len(parts), generator=generator).tolist()]
    return torch.cat(shuffled), tuple(len(part) for part in shuffled)
