"""The module that clients train, as flat vectors, and what decides how it may be trained."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Batch, Task
from fedadamw.validation import InputError, check
from fedadamw.vector import Layout, Vector, bind, bind_gradients, statistics, trainable

T = TypeVar("T")


class Workspace:
    """A module whose parameters, gradients and statistics are views into three flat vectors.

    Writing `y` changes the module, backward fills `gradient`: nothing is copied between vector and module.
    personal: the names of parameters and statistics that stay with each client. They are last in the vectors, so that
    what is shared is one view.
    """

    def __init__(self, module: nn.Module, personal: Sequence[str] = ()) -> None:
        self.module, self.personal = module, personal
        parameters = self._order(trainable(module))
        dtypes = sorted({str(p.dtype) for p in parameters.values()})
        if dtypes not in (["torch.float32"], ["torch.float64"]):
            given = ", ".join(dtypes) or "none"
            raise InputError(f"trainable parameters must all be float32, or all float64; their dtypes: {given}")
        Layout.of(module)  # checks them
        self.layout = Layout.of_tensors(parameters)
        self.y: Vector = self.layout.flatten(parameters)
        self.gradient: Vector = torch.zeros_like(self.y)
        floating = self._order(statistics(module))
        self.statistics_layout = Layout.of_tensors(floating)
        self.statistics: Vector = self.statistics_layout.flatten(floating).to(self.y)
        self.attach()
        others = [b for name, b in module.named_buffers() if name not in floating]
        for buffer in others:
            if any(step == 0 and n > 1 for step, n in zip(buffer.stride(), buffer.shape, strict=True)):
                buffer.data = buffer.clone()  # an expanded one, which cannot be copied into
        self._others = [(b, b.clone()) for b in others]
        self._trains_on_one_sample: bool | None = None  # None: not tried yet

    @property
    def shared(self) -> Vector:
        """The numbers of `y` that travel, (s,); all of them if nothing is personal."""
        return self.y[: self._count_shared(self.layout)]

    @property
    def shared_statistics(self) -> Vector:
        """The numbers of `statistics` that travel."""
        return self.statistics[: self._count_shared(self.statistics_layout)]

    def _count_shared(self, layout: Layout) -> int:
        return sum(n for name, n in zip(layout.names, layout.sizes, strict=True) if name not in self.personal)

    def _order(self, tensors: Mapping[str, T]) -> dict[str, T]:
        """The same, those that are personal last."""
        return {name: tensors[name] for name in sorted(tensors, key=lambda name: name in self.personal)}

    def attach(self) -> None:
        """Make the module's tensors views into these vectors, and freeze its other parameters.

        Only needed again after another workspace of the same module was used.
        """
        parameters, own = dict(self.module.named_parameters()), self.layout.names
        for name in parameters.keys() - set(own):
            parameters[name].requires_grad = False
        mine = {name: parameters[name] for name in own}
        for parameter in mine.values():
            parameter.requires_grad = True
        bind(mine, self.y)
        bind_gradients(mine, self.gradient)
        bind(self._order(statistics(self.module)), self.statistics)

    def load(self, y: Vector, statistics: Vector) -> None:
        """Put a model and its statistics into the module; reset its other buffers, such as counters."""
        self.y.copy_(y)
        self.statistics.copy_(statistics)
        for buffer, initial in self._others:
            buffer.copy_(initial)

    def release(self) -> None:
        """Give each of the module's tensors memory of its own, without a gradient: others may train it now."""
        for parameter in trainable(self.module).values():
            parameter.data, parameter.grad = parameter.data.clone(), None
        for buffer in statistics(self.module).values():
            buffer.data = buffer.data.clone()

    def trains_on_one_sample(self, task: Task, sample: int) -> bool:
        """Whether the module trains on a batch of one sample: BatchNorm may have only the batch to average over.

        A module with BatchNorm is tried once, with this sample.
        """
        if self._trains_on_one_sample is None:
            self._trains_on_one_sample = not mixes_samples(self.module) or self._try_one_sample(task, sample)
        return self._trains_on_one_sample

    @torch.no_grad()
    def _try_one_sample(self, task: Task, sample: int) -> bool:
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


def mixes_samples(module: nn.Module) -> bool:
    """Whether samples in a batch affect each other (BatchNorm)."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


def check_batch_norm(
    workspace: Workspace, task: Task, partition: Sequence[np.ndarray], training: TrainingSettings
) -> None:
    """Raise InputError if BatchNorm would see a single sample because a client, or every batch, has only one."""
    if not mixes_samples(workspace.module):
        return
    for client, samples in enumerate(partition):
        single = min(len(samples), training.batch_size) == 1
        if single and not workspace.trains_on_one_sample(task, int(samples[0])):
            check_not_single(training, client, len(samples))


def check_not_single(training: TrainingSettings, client: int, samples: int) -> None:
    """Raise InputError if every batch of a client with so many samples has one sample, where BatchNorm needs two."""
    why = "this model's BatchNorm averages over a batch, of two samples at least"
    check(training.batch_size > 1, f"training.batch_size=1: {why}")
    check(samples > 1, f"client {client} has a single sample, and {why}: give it more (partition.minimum=2)")


def autocast(training: TrainingSettings, device: torch.device) -> torch.autocast:
    """The context to call a model in: bfloat16 with training.precision=bf16."""
    return torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16")


def micro_batches(batch: Batch, size: int | None, *, dim: int = 0) -> Iterator[Batch]:
    """Yield a batch in parts of at most `size` samples, which lie along `dim`."""
    if size is None or batch[0].shape[dim] <= size:
        yield batch
    else:
        yield from zip(*(t.split(size, dim) for t in batch), strict=True)
