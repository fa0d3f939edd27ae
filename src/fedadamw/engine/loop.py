"""The loop engine: the sampled clients of a round one after the other, in one workspace.

Memory does not grow with the number of clients.
"""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.engine.client import Answer, Shard, Work, Workspace, autocast, micro_batches, work_of
from fedadamw.engine.prefetch import ahead
from fedadamw.engine.states import own
from fedadamw.engine.step import Step
from fedadamw.randomness import Purpose, torch_seed
from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Batch, Task
from fedadamw.vector import Vector, trainable


class Loop:
    """Trains clients one after the other."""

    def __init__(
        self,
        workspace: Workspace,
        algorithm: AnyAlgorithm,
        task: Task,
        training: TrainingSettings,
        seed: int,
        step: Step,
    ) -> None:
        self.workspace, self.algorithm, self.task = workspace, algorithm, task
        self.training, self.seed, self.step = training, seed, step
        self._checked = False

    def answers(
        self, shards: Iterable[Shard], round_: int, down: Any, statistics: Vector
    ) -> Iterator[tuple[Shard, Answer]]:
        """Train each client of `shards` from `down`; an answer is valid until the next one is asked for."""
        for shard in shards:
            yield shard, self.train(shard, round_, down, statistics)

    def train(self, shard: Shard, round_: int, down: Any, statistics: Vector) -> Answer:
        """One client's local steps in round `round_`, from what came down to what goes up."""
        algorithm, task, work = self.algorithm, self.task, self.workspace
        todo = work_of(task, self.training, self.seed, shard.client, shard.samples, round_, work)
        work.load(down.x, statistics)
        work.module.train()
        torch.manual_seed(torch_seed(self.seed, Purpose.MODULE, round_, shard.client))
        lr = work.y.new_tensor(self.training.lr_at(round_))
        memory = algorithm.client_init(down) if shard.memory is None else shard.memory
        start = algorithm.client_start(down, memory)
        work.y.copy_(start.y)
        local = own(start)._replace(y=work.y)  # steps move the module itself
        losses = []
        for batch in self._batches(todo):
            work.gradient.zero_()
            losses.append(self._backward(batch))
            with torch.no_grad():
                self.step(local, down, work.gradient, lr)
        up, memory = algorithm.client_finish(local, down, lr)
        return Answer(up, memory, work.statistics.clone(), torch.stack(losses).mean(), len(shard.samples), local)

    def _backward(self, batch: Batch) -> Tensor:
        """Add the gradient of the mean loss of a batch to the workspace's; the loss."""
        work, training, n = self.workspace, self.training, len(batch[0])
        total = work.y.new_zeros(())
        for part in micro_batches(batch, training.micro_batch):
            with autocast(training, work.y.device):
                loss = self.task.losses(work.module, part).sum() / n
            if not self._checked:
                self._warn_of_unreached(loss)
            loss.backward()
            total += loss.detach()
        return total

    def _batches(self, todo: Work) -> Iterator[Batch]:
        """The batches of a client's local steps."""
        task = self.task
        if task.resident:
            todo = todo.to(self.workspace.y.device)
        batches = (self._laid_out(task.batch(samples, drawn)) for samples, drawn in todo.batches())
        return batches if task.resident else ahead(batches)

    def _laid_out(self, batch: Batch) -> Batch:
        """The batch with a pixel's channels together in memory, where that is asked for."""
        if not self.training.channels_last or self.workspace.y.device.type != "cpu":
            return batch
        return tuple(t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in batch)

    def _warn_of_unreached(self, loss: Tensor) -> None:
        """Say once which parameters the loss does not depend on: torch's optimizers skip them, a flat step does not."""
        self._checked = True
        parameters = trainable(self.workspace.module)
        found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        unreached = [name for name, g in zip(parameters, found, strict=True) if g is None and parameters[name].numel()]
        if unreached:
            warnings.warn(
                f"the loss does not depend on {', '.join(unreached)}: they only decay and follow Delta_G; freeze them",
                stacklevel=2,
            )
