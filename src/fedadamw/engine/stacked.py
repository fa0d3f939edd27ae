"""The stacked engine: many sampled clients at once, their models the rows of one matrix (S, d).

`vmap` runs the module with every client's own weights on its own batch; one backward gives all gradients; the
algorithm's step moves all rows at once. The numbers are those of the loop engine, except for rounding and for what the
module drops at random:

- batches of unequal size are padded with samples of weight 0; if samples in a batch affect each other (BatchNorm), only
  clients with batches of equal size are stacked;
- clients are sorted by their number of steps, most first, so that the active ones are always the first rows.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from math import nan
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.engine.client import Answer, Broadcast, LocalWork, Shard, plan_work, seed_module
from fedadamw.engine.device_memory import is_out_of_memory, release_memory
from fedadamw.engine.likelihood import Likelihood
from fedadamw.engine.loop import Loop
from fedadamw.engine.prefetch import read_ahead
from fedadamw.engine.private_gradient import SampleGradients, SamplePrivacy
from fedadamw.engine.stacked_batches import Plan
from fedadamw.engine.stacked_checkpoints import stacked_checkpoints
from fedadamw.engine.states import map_tensors, stack_states
from fedadamw.engine.step import Step
from fedadamw.engine.vmap_rules import batched_kernels
from fedadamw.engine.workspace import Workspace, autocast, micro_batches, mixes_samples
from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Batch, Task
from fedadamw.validation import InputError
from fedadamw.vector import Vector

Job = tuple[Shard, LocalWork]
TakeGradient = Callable[[Vector, dict[str, Tensor], Batch, Tensor], tuple[Vector, Tensor]]
VMAP_ERRORS = re.compile(r"vmap|functorch|autograd\.Function|batching rule", re.IGNORECASE)


class NotStackableError(Exception):
    """The model's code does not take tensors with a client axis; the message says why."""


class Stacked:
    """Trains clients `group` at a time; a group that does not fit in the device's memory is halved, permanently.

    fallback: trains the clients if the model cannot be stacked; without it that raises InputError.
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
        fallback: Loop | None = None,
        privacy: SamplePrivacy | None = None,
    ) -> None:
        self.workspace, self.algorithm, self.task = workspace, algorithm, task
        self.training, self.seed, self.step, self.group = training, seed, step, group
        self.fallback, self.stacks = fallback, True
        self._mixes_samples = mixes_samples(workspace.module)
        self.privacy = privacy
        self.sums = None if privacy is None else SampleGradients(workspace, task, training, privacy)

    def train(self, shards: Iterable[Shard], broadcast: Broadcast) -> Iterator[tuple[Shard, Answer]]:
        """Yield the answer of each client of `shards`, in the engine's order."""
        every, done = list(shards), set[tuple[int, int]]()
        if self.stacks:
            for jobs in self._stackable_jobs(every, broadcast.round):
                while jobs and self.stacks:
                    group = jobs[: self.group]
                    answers = self._try_group(group, broadcast)
                    del jobs[: len(answers)]
                    for shard, _ in group[: len(answers)]:
                        done.add((shard.client, shard.repeat))
                        yield shard, answers.pop(0)  # not kept here: each is a view of all the group's tensors
        if not self.stacks and self.fallback is not None:
            yield from self.fallback.train((s for s in every if (s.client, s.repeat) not in done), broadcast)

    def _stackable_jobs(self, shards: Sequence[Shard], round_: int) -> Iterator[list[Job]]:
        """The clients with their work, most steps first, in lists whose members can be stacked."""
        jobs = [(shard, self._plan_work(shard, round_)) for shard in shards]
        jobs.sort(key=lambda job: -len(job[1].sizes))
        if not self._mixes_samples:
            yield jobs
            return
        for _, same_sizes in groupby(sorted(jobs, key=_batch_sizes), key=_batch_sizes):
            yield list(same_sizes)

    def _plan_work(self, shard: Shard, round_: int) -> LocalWork:
        whose = (self.seed, shard.client, shard.samples, round_)
        return plan_work(self.task, self.training, *whose, self.workspace, self.privacy, shard.repeat, shard.steps)

    def _try_group(self, group: Sequence[Job], broadcast: Broadcast) -> list[Answer]:
        """The group's answers; [] after halving the group size or falling back to the loop, with memory released."""
        try:
            return self._train_group(group, broadcast)
        except NotStackableError as error:
            if self.fallback is None:
                raise InputError(f"this model does not train stacked: set stack=1 ({error})") from error
            self.stacks = False
            warnings.warn(
                f"this model does not train stacked ({error}): its clients train one after the other, as with stack=1",
                stacklevel=2,
            )
        except (RuntimeError, MemoryError) as error:
            if len(group) == 1 or not is_out_of_memory(error):
                raise
            self.group = len(group) // 2
        release_memory()
        return []

    def _train_group(self, group: Sequence[Job], broadcast: Broadcast) -> list[Answer]:
        """Take the local steps of some clients, those with the most steps first."""
        algorithm, work = self.algorithm, self.workspace
        round_, down, statistics, _ = broadcast
        shards, s = [shard for shard, _ in group], len(group)
        work.load(work.y, statistics if shards[0].statistics is None else shards[0].statistics)
        work.module.train()
        seed_module(self.seed, round_, shards[0].client, work.y.device, self.privacy, repeat=shards[0].repeat)
        lr = work.y.new_tensor(self.training.lr_at(round_))
        memories = [algorithm.client_init(down) if shard.memory is None else shard.memory for shard in shards]
        start = algorithm.client_start(down, stack_states(memories))
        local = map_tensors(start, lambda t: t.expand(s, t.shape[-1]).clone())
        buffers, losses = self._buffers(shards), local.y.new_zeros(s)
        plan = Plan.of([job_work for _, job_work in group], like=work.y, resident=self.task.resident)
        batches = (plan.batch(self.task, k) for k in range(len(plan.active)))
        likelihood = Likelihood.of(algorithm, start, down, work.layout.sizes, self.training)
        take_gradient = self._backward if self.sums is None else self._private(self.sums, round_, shards)
        for active, (batch, weights) in zip(plan.active, read_ahead(batches, self.task), strict=True):
            first = local if active == s else map_tensors(local, lambda t: t[:active])  # noqa: B023  (called at once)
            with _detect_unstackable(required=self.fallback is None):
                g, loss = take_gradient(first.y, {n: b[:active] for n, b in buffers.items()}, batch, weights)
            with torch.no_grad():
                if likelihood is not None:
                    likelihood.add(g)
                self.step(first, down, g, lr)
            losses[:active] += loss
        up, memory = algorithm.client_finish(local, down, lr)
        averages = self._statistics_of(buffers, s) if len(work.statistics) else work.statistics.expand(s, -1)
        return [
            Answer(
                map_tensors(up, lambda t: t[i]),  # noqa: B023  (called at once)
                map_tensors(memory, lambda t: t[i].clone()),  # noqa: B023  (a view would keep all of them)
                averages[i].clone(),
                losses[i] / len(plan.sizes[i]),
                len(shards[i].samples),
                map_tensors(local, lambda t: t[i]),  # noqa: B023
                likelihood=None if likelihood is None else likelihood.sums(i),
                steps=len(plan.sizes[i]),
            )
            for i in range(s)
        ]

    def _buffers(self, shards: Sequence[Shard]) -> dict[str, Tensor]:
        """The module's buffers of each client by name, (S, *shape), with the running statistics that it starts from."""
        s, module = len(shards), self.workspace.module
        buffers = {name: b.expand(s, *b.shape).clone() for name, b in module.named_buffers()}
        own = [shard.statistics for shard in shards if shard.statistics is not None]
        if own:
            named = self.workspace.statistics_layout.views(torch.stack(own))
            buffers |= {name: t.clone() for name, t in named.items()}
        return buffers

    def _statistics_of(self, buffers: dict[str, Tensor], s: int) -> Tensor:
        """The running statistics of each client, (s, statistics)."""
        return torch.cat([buffers[name].reshape(s, -1) for name in self.workspace.statistics_layout.names], -1)

    def _backward(self, y: Vector, buffers: dict[str, Tensor], batch: Batch, weights: Tensor) -> tuple[Vector, Tensor]:
        """The gradient (active, d) and value (active,) of each client's mean loss on its own batch."""
        y = y.detach().requires_grad_()
        g, total = None, weights.new_zeros(len(weights))
        for *part, part_weights in micro_batches((*batch, weights), self.training.micro_batch, dim=1):
            losses = self._losses(y, buffers, tuple(part), part_weights)
            (more,) = torch.autograd.grad(losses.sum(), y)
            g = more if g is None else g + more
            total += losses.detach()
        assert g is not None
        return g, total

    def _private(self, sums: SampleGradients, round_: int, shards: Sequence[Shard]) -> TakeGradient:
        """What does the same with privacy of samples, in the steps of a round; it does not tell the losses."""
        noises = [sums.privacy.noise(round_, shard.client, self.workspace.y.device) for shard in shards]

        def take_gradient(
            y: Vector, buffers: dict[str, Tensor], batch: Batch, weights: Tensor
        ) -> tuple[Vector, Tensor]:
            g = sums.sum_stacked(y, buffers, batch, weights > 0)
            for own, noise in zip(g, noises, strict=False):  # of the active ones
                sums.privacy.finish(own, noise)
            return g, y.new_full((len(y),), nan)

        return take_gradient

    def _losses(self, y: Vector, buffers: dict[str, Tensor], batch: Batch, weights: Tensor) -> Tensor:
        """The part of each client's mean loss that these samples give, (active,), with the models y (active, d)."""
        module, layout, task = self.workspace.module, self.workspace.layout, self.task

        def client_loss(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch, weights: Tensor
        ) -> Tensor:
            def model(*args: Any, **kwargs: Any) -> Any:
                return functional_call(module, (parameters, buffers), args, kwargs)

            return (task.losses(model, batch) * weights).sum()

        again = stacked_checkpoints(module) if self.training.gradient_checkpointing else nullcontext()
        with batched_kernels(), again, autocast(self.training, y.device):
            losses: Tensor = vmap(client_loss, randomness="different")(layout.views(y), buffers, batch, weights)
        return losses


def _batch_sizes(job: Job) -> tuple[int, ...]:
    return job[1].sizes


@contextmanager
def _detect_unstackable(*, required: bool) -> Iterator[None]:
    """A context that calls the model with a client axis; raises NotStackableError if the model does not take one.

    required: there is no fallback, so only vmap's own errors are reported as that.
    """
    try:
        yield
    except Exception as error:  # from vmap, or from model code that sees unexpected tensors
        of_device = is_out_of_memory(error) or str(error).startswith("CUDA error:")
        if of_device or (required and not VMAP_ERRORS.search(str(error))):
            raise
        why = (str(error) or type(error).__name__).splitlines()[0].split(". ", 1)[0]
        raise NotStackableError(why) from error
