"""The stacked engine: many sampled clients at once, their models the rows of one matrix (S, d).

`vmap` runs the module with every client's own weights on its own batch; one backward gives all gradients; the
algorithm's step moves all rows at once. The numbers are those of the loop engine, but for rounding
and for what the module drops at random:

- batches of unequal size are filled up with samples whose loss counts nothing; where a sample is felt by the others of
  its batch (BatchNorm), only clients with batches of equal size are stacked;
- clients are sorted by their number of steps, longest first, so that those still at work are always the first rows.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.engine.client import Answer, Shard, Work, Workspace, autocast, batches_mix, micro_batches, work_of
from fedadamw.engine.device_memory import give_back, is_out_of_memory
from fedadamw.engine.loop import Loop
from fedadamw.engine.prefetch import ahead
from fedadamw.engine.states import mapped, stacked
from fedadamw.engine.step import Step
from fedadamw.engine.vmap_rules import batched
from fedadamw.randomness import Purpose, torch_seed
from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Batch, Task
from fedadamw.validation import InputError
from fedadamw.vector import Layout, Vector, statistics

OF_STACKING = re.compile(r"vmap|functorch|autograd\.Function|batching rule", re.IGNORECASE)


class NotStackedError(Exception):
    """A model's own code does not take tensors with a client axis; why."""


class Stacked:
    """Trains clients `group` at a time; a group that the device's memory does not hold is halved, for good.

    instead: what trains clients once the model turns out not to be one that can be stacked; InputError without it.
    """

    def __init__(
        self,
        workspace: Workspace,
        algorithm: AnyAlgorithm,
        task: Task,
        training: TrainingSettings,
        seed: int,
        step: Step,
        group: int,
        instead: Loop | None = None,
    ) -> None:
        self.workspace, self.algorithm, self.task = workspace, algorithm, task
        self.training, self.seed, self.step, self.group = training, seed, step, group
        self.instead, self.stacks = instead, True
        self._statistics = Layout.of_tensors(statistics(workspace.module))
        self._batches_mix = batches_mix(workspace.module)

    def answers(
        self, shards: Iterable[Shard], round_: int, down: Any, statistics: Vector
    ) -> Iterator[tuple[Shard, Answer]]:
        """Train the clients of `shards` from `down`, in an order of the engine's own."""
        every, done = list(shards), set[int]()
        if self.stacks:
            for part in self._groups(every, round_):
                while part and self.stacks:
                    now = part[: self.group]
                    found = self._tried(now, round_, down, statistics)
                    del part[: len(found)]
                    for shard, _ in now[: len(found)]:
                        done.add(shard.client)
                        yield shard, found.pop(0)  # and is not held here: each is a view of all the group's tensors
        if not self.stacks and self.instead is not None:
            yield from self.instead.answers((s for s in every if s.client not in done), round_, down, statistics)

    def _groups(self, shards: Sequence[Shard], round_: int) -> "Iterator[list[tuple[Shard, Work]]]":
        """The clients with their work, those with the most steps first; in a group all may be stacked."""
        todo = [
            (shard, work_of(self.task, self.training, self.seed, shard.client, shard.samples, round_, self.workspace))
            for shard in shards
        ]
        todo.sort(key=lambda pair: -len(pair[1].sizes))
        yield from self._alike(todo)

    def _tried(self, part: "Sequence[tuple[Shard, Work]]", round_: int, down: Any, statistics: Vector) -> list[Answer]:
        """Returns [] after halving the group or falling back to the loop; memory is released."""
        try:
            return self._train(part, round_, down, statistics)
        except NotStackedError as error:
            if self.instead is None:
                raise InputError(f"this model does not train stacked: set stack=1 ({error})") from error
            self.stacks = False
            warnings.warn(
                f"this model does not train stacked ({error}): its clients train one after the other, as with stack=1",
                stacklevel=2,
            )
        except (RuntimeError, MemoryError) as error:
            if len(part) == 1 or not is_out_of_memory(error):
                raise
            self.group = len(part) // 2
        give_back()
        return []

    def _alike(self, todo: "Sequence[tuple[Shard, Work]]") -> "Iterator[list[tuple[Shard, Work]]]":
        """The clients that may be stacked: all of them, or those with the same batch sizes where batches mix."""
        if not self._batches_mix:
            yield list(todo)
            return
        for _, part in groupby(sorted(todo, key=lambda pair: pair[1].sizes), key=lambda pair: pair[1].sizes):
            yield list(part)

    def _train(self, part: "Sequence[tuple[Shard, Work]]", round_: int, down: Any, statistics: Vector) -> list[Answer]:
        """The local steps of some clients, those with the most steps first."""
        algorithm, work = self.algorithm, self.workspace
        shards = [shard for shard, _ in part]
        s = len(shards)
        work.load(down.x, statistics)
        work.module.train()
        torch.manual_seed(torch_seed(self.seed, Purpose.MODULE, round_, shards[0].client))
        lr = work.y.new_tensor(self.training.lr_at(round_))
        memories = [algorithm.client_init(down) if shard.memory is None else shard.memory for shard in shards]
        start = algorithm.client_start(down, stacked(memories))
        local = mapped(start, lambda t: t.expand(s, t.shape[-1]).clone())
        buffers = {name: b.expand(s, *b.shape).clone() for name, b in work.module.named_buffers()}
        plan = Plan.of([todo for _, todo in part], like=work.y, resident=self.task.resident)
        batches = (plan.batch(self.task, k) for k in range(len(plan.active)))
        losses = local.y.new_zeros(s)
        for active, (batch, weights) in zip(plan.active, batches if plan.resident else ahead(batches), strict=True):
            first = local if active == s else mapped(local, lambda t: t[:active])  # noqa: B023  (called at once)
            with _stackable(asked=self.instead is None):
                g, found = self._backward(first.y, {n: b[:active] for n, b in buffers.items()}, batch, weights)
            with torch.no_grad():
                self.step(first, down, g, lr)
            losses[:active] += found
        up, memory = algorithm.client_finish(local, down, lr)
        kept = torch.cat([buffers[n].reshape(s, -1) for n in self._statistics.names], -1) if len(statistics) else None
        return [
            Answer(
                mapped(up, lambda t: t[i]),  # noqa: B023
                mapped(memory, lambda t: t[i].clone()),  # noqa: B023  (not a view that would keep all of them)
                statistics.clone() if kept is None else kept[i],
                losses[i] / len(plan.sizes[i]),
                len(shards[i].samples),
                mapped(local, lambda t: t[i]),  # noqa: B023
            )
            for i in range(s)
        ]

    def _backward(self, y: Vector, buffers: dict[str, Tensor], batch: Batch, weights: Tensor) -> tuple[Vector, Tensor]:
        """The gradient (active, d) and value (active,) of each client's mean loss on its own batch."""
        y = y.detach().requires_grad_()
        g, total = None, weights.new_zeros(len(weights))
        for *part, own in micro_batches((*batch, weights), self.training.micro_batch, dim=1):
            found = self._losses(y, buffers, tuple(part), own)
            (more,) = torch.autograd.grad(found.sum(), y)
            g = more if g is None else g + more
            total += found.detach()
        assert g is not None
        return g, total

    def _losses(self, y: Vector, buffers: dict[str, Tensor], batch: Batch, weights: Tensor) -> Tensor:
        """Each client's part of its mean loss that these samples give, (active,), with the models y (active, d)."""
        module, layout, task = self.workspace.module, self.workspace.layout, self.task

        def of_one(parameters: dict[str, Tensor], own: dict[str, Tensor], batch: Batch, weights: Tensor) -> Tensor:
            def model(*args: Any, **kwargs: Any) -> Any:
                return functional_call(module, (parameters, own), args, kwargs)

            return (task.losses(model, batch) * weights).sum()

        with batched(), autocast(self.training, y.device):
            found: Tensor = vmap(of_one, randomness="different")(layout.views(y), buffers, batch, weights)
        return found


@contextmanager
def _stackable(*, asked: bool) -> Iterator[None]:
    """A block that calls the model with a client axis; NotStackedError where it does not take that.

    asked: nothing trains its clients instead, so only what vmap says of the model is told as that.
    """
    try:
        yield
    except Exception as error:  # vmap's own, or whatever the model's code makes of tensors that are not as they seem
        of_device = is_out_of_memory(error) or str(error).startswith("CUDA error:")
        if of_device or (asked and not OF_STACKING.search(str(error))):
            raise
        why = (str(error) or type(error).__name__).splitlines()[0].split(". ", 1)[0]
        raise NotStackedError(why) from error


class Plan(NamedTuple):
    """The batches of some clients, step by step, filled up to one size."""

    resident: bool  # whether the samples are on the model's device, as these numbers of them then are
    samples: Tensor  # (S, K, n)
    drawn: Tensor  # (S, K, n, r)
    weights: Tensor  # (S, K, n) 1 / size of the batch, 0 for what was filled up
    active: list[int]  # (K,) how many clients, the first ones, have such a step
    sizes: list[tuple[int, ...]]  # of each client's batches
    widths: list[int]  # (K,) samples of the largest batch at each step: all have as many where batches mix

    @staticmethod
    def of(works: Sequence[Work], *, like: Tensor, resident: bool) -> "Plan":
        """From the work of clients that are sorted by their number of steps; on the device of `like`."""
        steps = len(works[0].sizes)
        n = max(max(work.sizes) for work in works)
        slots = [_slots(work.sizes, steps, n) for work in works]
        samples = torch.stack([work.samples[at] for work, (at, _) in zip(works, slots, strict=True)])
        drawn = torch.stack([work.drawn[at] for work, (at, _) in zip(works, slots, strict=True)])
        weights = torch.stack([weight for _, weight in slots]).to(like)
        active = [sum(len(work.sizes) > k for work in works) for k in range(steps)]
        device = like.device if resident else samples.device
        sizes = [work.sizes for work in works]
        widths = [max(own[k] for own in sizes[: active[k]]) for k in range(steps)]
        return Plan(resident, samples.to(device), drawn.to(device), weights, active, sizes, widths)

    def batch(self, task: Task, k: int) -> tuple[Batch, Tensor]:
        """The batches (active, n, ...) of step `k` and the weights (active, n) of their samples' losses."""
        active, width = self.active[k], self.widths[k]
        samples, drawn = self.samples[:active, k, :width], self.drawn[:active, k, :width]
        batch = task.batch(samples.flatten(), drawn.flatten(0, 1))
        return tuple(t.unflatten(0, samples.shape).contiguous() for t in batch), self.weights[:active, k, :width]


def _slots(sizes: tuple[int, ...], steps: int, n: int) -> tuple[Tensor, Tensor]:
    """For each step and place in a batch (steps, n): which of a client's drawn samples it is, and its weight."""
    size = torch.tensor([*sizes, *[0] * (steps - len(sizes))])
    place = torch.arange(n)
    at = (size.cumsum(0) - size)[:, None] + place
    real = place < size[:, None]
    return torch.where(real, at, 0), real.double() / size.clamp(min=1)[:, None]
