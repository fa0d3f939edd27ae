"""What the engines share of a client: the module in flat vectors, its work of a round, its answer."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedadamw.randomness import Purpose, draw_batches, numpy_generator, torch_generator
from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Batch, Task
from fedadamw.validation import InputError, check
from fedadamw.vector import Layout, Vector, all_finite, bind, bind_gradients, statistics, trainable


class Workspace:
    """A module whose parameters, gradients and statistics are views into three flat vectors.

    Writing `y` changes the module, backward fills the gradient: between vector and module nothing is copied.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        parameters = trainable(module)
        dtypes = sorted({str(p.dtype) for p in parameters.values()})
        if dtypes not in (["torch.float32"], ["torch.float64"]):
            given = ", ".join(dtypes) or "none"
            raise InputError(f"trainable parameters must all be float32, or all float64; their dtypes: {given}")
        self.layout = Layout.of(module)
        self.y: Vector = self.layout.flatten(parameters)
        self.gradient: Vector = torch.zeros_like(self.y)
        bind(parameters, self.y)
        bind_gradients(parameters, self.gradient)
        floating = statistics(module)
        self.statistics: Vector = Layout.of_tensors(floating).flatten(floating).to(self.y)
        bind(floating, self.statistics)
        others = [b for name, b in module.named_buffers() if name not in floating]
        for buffer in others:
            if any(step == 0 and n > 1 for step, n in zip(buffer.stride(), buffer.shape, strict=True)):
                buffer.data = buffer.clone()  # one that was expanded, into which nothing can be copied
        self._others = [(b, b.clone()) for b in others]
        self._takes_one: bool | None = None  # once it is known

    def load(self, y: Vector, statistics: Vector) -> None:
        """Put a model and its statistics into the module; its other buffers (counters) go back to their start."""
        self.y.copy_(y)
        self.statistics.copy_(statistics)
        for buffer, start in self._others:
            buffer.copy_(start)

    def takes_one(self, task: Task, sample: int) -> bool:
        """Whether the module trains on a batch of one sample: not where a BatchNorm has only the batch to average over.

        Tried once, with this sample, where it has a BatchNorm at all.
        """
        if self._takes_one is None:
            self._takes_one = not batches_mix(self.module) or self._tried(task, sample)
        return self._takes_one

    @torch.no_grad()
    def _tried(self, task: Task, sample: int) -> bool:
        before = self.statistics.clone()
        place = self.y.device if task.resident else "cpu"
        drawn = task.draw(1, torch.Generator().manual_seed(0))
        batch = task.batch(torch.tensor([sample], device=place), drawn.to(place))
        self.module.train()
        try:
            task.losses(self.module, batch)
        except ValueError as error:
            if not str(error).startswith("Expected more than 1 value per channel"):
                raise
            return False
        finally:
            self.load(self.y, before)
        return True


def autocast(training: TrainingSettings, device: torch.device) -> torch.autocast:
    """The block that a model is called in: in bfloat16 where the training says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16")


def batches_mix(module: nn.Module) -> bool:
    """Whether a sample is felt by the others of its batch."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


def micro_batches(batch: Batch, size: int | None, *, dim: int = 0) -> Iterator[Batch]:
    """The samples of a batch, which lie along `dim`, at most `size` at a time."""
    if size is None or batch[0].shape[dim] <= size:
        yield batch
    else:
        yield from zip(*(t.split(size, dim) for t in batch), strict=True)


class Answer(NamedTuple):
    """What one client's round leaves."""

    up: Any  # the algorithm's Up, as the server has it
    memory: Any
    statistics: Vector  # (s,)
    loss: Tensor  # () mean over the local steps
    samples: int
    local: Any  # the algorithm's Local after the last step, for diagnostics
    payload: Mapping[str, Tensor] | None = None  # what travels of `up` where a codec made it what it is

    @property
    def travels(self) -> Sequence[Tensor]:
        """The tensors that are sent."""
        return (*(self.up if self.payload is None else self.payload.values()), self.statistics)

    @property
    def finite(self) -> bool:
        """Whether every number that arrives is finite."""
        return all_finite((*self.up, self.statistics))


class Shard(NamedTuple):
    """One sampled client of a round."""

    client: int
    samples: Any  # (n,) index array
    memory: Any  # what the algorithm left there, or None


class Work(NamedTuple):
    """What a client's local steps of one round are made of, drawn beforehand; on the CPU at first."""

    samples: Tensor  # (total,) numbers of the samples, batch after batch
    drawn: Tensor  # (total, r) what the task drew for each
    sizes: tuple[int, ...]  # of the batches

    def to(self, device: torch.device) -> "Work":
        """The same on `device`."""
        return Work(self.samples.to(device), self.drawn.to(device), self.sizes)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(samples, drawn) of each local step."""
        return zip(self.samples.split(self.sizes), self.drawn.split(self.sizes), strict=True)


def work_of(
    task: Task,
    training: TrainingSettings,
    seed: int,
    client: int,
    samples: np.ndarray,
    round_: int,
    workspace: Workspace | None = None,
) -> Work:
    """The work of `client` with the `samples` (n,) in round `round_`: the same in every engine.

    workspace: if its BatchNorm rejects a batch of one, such a batch joins the one before.
    """
    parts = draw_batches(
        samples,
        numpy_generator(seed, Purpose.BATCHES, round_, client),
        batch_size=training.batch_size,
        steps=training.steps,
        epochs=training.epochs,
    )
    order = torch.from_numpy(np.concatenate(parts))
    sizes = tuple(len(part) for part in parts)
    if workspace is not None and 1 in sizes and not workspace.takes_one(task, int(samples[0])):
        check_company(training, client, len(samples))
        warnings.warn(
            "BatchNorm takes no batch of one sample: where one is left, it joins the batch before", stacklevel=2
        )
        sizes = in_company(sizes)
    if training.group_by_length and task.lengths is not None:
        generator = torch_generator(seed, Purpose.GROUPING, round_, client, device=torch.device("cpu"))
        order, sizes = grouped(order, sizes, task.lengths, generator)
    drawn = task.draw(len(order), torch_generator(seed, Purpose.AUGMENT, round_, client, device=torch.device("cpu")))
    return Work(order, drawn, sizes)


def check_company(training: TrainingSettings, client: int, samples: int) -> None:
    """Raise InputError where the batches of a client with so many samples are of one sample each."""
    why = "this model's BatchNorm averages over a batch, of two samples at least"
    check(training.batch_size > 1, f"training.batch_size=1: {why}")
    check(samples > 1, f"client {client} has a single sample, and {why}: give it more (partition.minimum=2)")


def in_company(sizes: Sequence[int]) -> tuple[int, ...]:
    """The same samples in other batches: one that would be alone at the end of a pass joins the batch before it."""
    found: list[int] = []
    for size in sizes:
        if size == 1:
            found[-1] += 1
        else:
            found.append(size)
    return tuple(found)


def grouped(
    order: Tensor, sizes: Sequence[int], lengths: Tensor, generator: torch.Generator
) -> tuple[Tensor, tuple[int, ...]]:
    """The same samples in batches of the same sizes, each of samples of much the same length, in random order."""
    parts = order[torch.argsort(lengths[order], stable=True)].split(tuple(sizes))
    shuffled = [parts[i] for i in torch.randperm(len(parts), generator=generator).tolist()]
    return torch.cat(shuffled), tuple(len(part) for part in shuffled)
