"""The stacked engine: many sampled clients at once, their models the rows of one matrix (S, d).

`vmap` runs the module with every client's own weights on its own batch; one backward gives all gradients; the
algorithm's step moves all rows at once. The numbers are those of the loop engine, but for rounding
and for what the module drops at random:

- batches of unequal size are filled up with samples whose loss counts nothing; where a sample is felt by the others of
  its batch (BatchNorm), only clients with batches of equal size are stacked;
- clients are sorted by their number of steps, longest first, so that those still at work are always the first rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.engine.ahead import ahead
from fedadamw.engine.batching import batched
from fedadamw.engine.client import Answer, Shard, Work, Workspace, autocast, batches_mix, micro_batches, work_of
from fedadamw.engine.randomness import Purpose, torch_seed
from fedadamw.engine.settings import Training
from fedadamw.engine.step import Step, mapped
from fedadamw.engine.task import Batch, Task
from fedadamw.validation import InputError
from fedadamw.vector import Layout, Vector, statistics


class Stacked:
    """Trains clients `group` at a time; a group that the device's memory does not hold is halved, for good."""

    def __init__(
        self,
        workspace: Workspace,
        algorithm: AnyAlgorithm,
        task: Task,
        training: Training,
        seed: int,
        step: Step,
        group: int,
    ) -> None:
        self.workspace, self.algorithm, self.task = workspace, algorithm, task
        self.training, self.seed, self.step, self.group = training, seed, step, group
        self._statistics = Layout.named(statistics(workspace.module))
        self._batches_mix = batches_mix(workspace.module)

    def answers(
        self, shards: Iterable[Shard], round_: int, down: Any, statistics: Vector
    ) -> Iterator[tuple[Shard, Answer]]:
        """Train the clients of `shards` from `down`, in an order of the engine's own."""
        todo = [
            (shard, work_of(self.task, self.training, self.seed, shard.client, shard.samples, round_, self.workspace))
            for shard in shards
        ]
        todo.sort(key=lambda pair: -len(pair[1].sizes))
        for alike in self._alike(todo):
            done = 0
            while done < len(alike):
                part = alike[done : done + self.group]
                found = self._tried(part, round_, down, statistics)
                if found is None:
                    self.group = len(part) // 2
                    torch.cuda.empty_cache()
                else:
                    yield from zip((shard for shard, _ in part), found, strict=True)
                    done += len(part)

    def _tried(
        self, part: "Sequence[tuple[Shard, Work]]", round_: int, down: Any, statistics: Vector
    ) -> list[Answer] | None:
        """`_train`, or None where the device's memory does not hold so many; what it held is free then."""
        try:
            return self._train(part, round_, down, statistics)
        except torch.cuda.OutOfMemoryError:
            if len(part) == 1:
                raise
            return None

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
            try:
                found: Tensor = vmap(of_one, randomness="different")(layout.views(y), buffers, batch, weights)
            except RuntimeError as error:
                if not str(error).startswith("vmap:"):
                    raise
                why = str(error).split(". ", 1)[0]
                raise InputError(f"this model does not train stacked: set stack=1 ({why})") from error
        return found


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


def stacked(states: Sequence[Any]) -> Any:
    """States with a new first axis: one state of stacked tensors."""
    first = states[0]
    if isinstance(first, Tensor):
        return torch.stack(list(states))
    return type(first)(*(stacked(fields) for fields in zip(*states, strict=True))) if first != () else first
