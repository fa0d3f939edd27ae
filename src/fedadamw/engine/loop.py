"""The loop engine: sampled clients train one after the other in one workspace.

Memory does not grow with the number of clients.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from math import nan

import torch
from torch import Tensor

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.engine.client import Answer, Broadcast, LocalWork, Shard, plan_work, seed_module
from fedadamw.engine.likelihood import Likelihood
from fedadamw.engine.prefetch import read_ahead
from fedadamw.engine.private_gradient import SampleGradients, SamplePrivacy
from fedadamw.engine.ranks import ALONE, Team
from fedadamw.engine.states import clone_tensors
from fedadamw.engine.step import Step
from fedadamw.engine.workspace import Workspace, autocast
from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Batch, Task
from fedadamw.vector import trainable


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
        ranks: Team = ALONE,
        privacy: SamplePrivacy | None = None,
    ) -> None:
        self.workspace, self.algorithm, self.task = workspace, algorithm, task
        self.training, self.seed, self.step, self.ranks = training, seed, step, ranks
        self.privacy = privacy
        self.sums = None if privacy is None else SampleGradients(workspace, task, training, privacy)
        self._checked = False

    def train(self, shards: Iterable[Shard], broadcast: Broadcast) -> Iterator[tuple[Shard, Answer]]:
        """Yield the answer of each client of `shards`; it is valid until the next one is asked for."""
        for shard in shards:
            yield shard, self.train_client(shard, broadcast)

    def train_client(self, shard: Shard, broadcast: Broadcast) -> Answer:
        """Take one client's local steps, from what came down to what goes up."""
        algorithm, workspace, down = self.algorithm, self.workspace, broadcast.down
        round_, client = broadcast.round, shard.client
        whose = (self.seed, client, shard.samples, round_)
        work = plan_work(self.task, self.training, *whose, workspace, self.privacy, shard.repeat, shard.steps)
        memory = algorithm.client_init(down) if shard.memory is None else shard.memory
        start = algorithm.client_start(down, memory)
        workspace.load(start.y, broadcast.statistics if shard.statistics is None else shard.statistics)
        workspace.module.train()
        seed_module(self.seed, round_, client, workspace.y.device, self.privacy, self.ranks.member, shard.repeat)
        lr = workspace.y.new_tensor(self.training.lr_at(round_))
        local = clone_tensors(start)._replace(y=workspace.y)  # steps move the module itself
        likelihood = Likelihood.of(algorithm, start, down, workspace.layout.sizes, self.training)
        losses = []
        take_gradient = self._backward if self.sums is None else self._private(self.sums, round_, client)
        for batch in self._batches(work):
            losses.append(take_gradient(batch))
            with torch.no_grad():
                if likelihood is not None:
                    likelihood.add(workspace.gradient)
                self.step(local, down, workspace.gradient, lr)
        up, memory = algorithm.client_finish(local, down, lr)
        memory = clone_tensors(memory)  # the next client trains in this one's tensors
        loss = torch.stack(losses).mean()
        found = None if likelihood is None else likelihood.sums()
        samples = len(shard.samples)
        own = (up, memory, workspace.statistics.clone(), loss, samples, local)
        return Answer(*own, likelihood=found, steps=len(work.sizes))

    def _private(self, sums: SampleGradients, round_: int, client: int) -> Callable[[Batch], Tensor]:
        """What does the same as `_backward` with privacy of samples, in the steps of a round; it tells no loss."""
        workspace = self.workspace
        noise = sums.privacy.noise(round_, client, workspace.y.device)

        def take_gradient(batch: Batch) -> Tensor:
            if batch and not self._checked:
                self._check_first(batch)
            sums.fill(batch)
            sums.privacy.finish(workspace.gradient, noise)
            return workspace.y.new_tensor(nan)

        return take_gradient

    def _check_first(self, batch: Batch) -> None:
        """Look for unused parameters, which the noise would move, by the loss of a batch's first sample."""
        device = self.workspace.y.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), autocast(self.training, device):
            loss = self.task.losses(self.workspace.module, tuple(t[:1] for t in batch)).sum()
            self._warn_of_unused_parameters(loss)

    def _backward(self, batch: Batch) -> Tensor:
        """Make the workspace's gradient that of a batch's mean loss; returns the loss."""
        workspace, training, n = self.workspace, self.training, len(batch[0])
        workspace.gradient.zero_()
        total = workspace.y.new_zeros(())
        for part, weights in self.ranks.own_rows(batch, training.micro_batch):
            with autocast(training, workspace.y.device):
                losses = self.task.losses(workspace.module, part)
                loss = (losses if weights is None else losses * weights).sum() / n
            if not self._checked:
                self._warn_of_unused_parameters(loss)
            loss.backward()
            total += loss.detach()
        self.ranks.sum_rows([workspace.gradient, total])
        return total

    def _batches(self, work: LocalWork) -> Iterator[Batch]:
        """The batches of a client's local steps."""
        task = self.task
        if task.resident:
            work = work.to(self.workspace.y.device)
        batches = (
            self._convert_layout(task.batch(samples, drawn)) if len(samples) else ()  # with privacy
            for samples, drawn in work.batches()
        )
        return read_ahead(batches, task)

    def _convert_layout(self, batch: Batch) -> Batch:
        """The batch in channels-last memory format, with training.channels_last on a CPU."""
        if not self.training.channels_last or self.workspace.y.device.type != "cpu":
            return batch
        return tuple(t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in batch)

    def _warn_of_unused_parameters(self, loss: Tensor) -> None:
        """Warn once of parameters without a gradient: torch's optimizers skip them, a flat step does not."""
        self._checked = True
        parameters = trainable(self.workspace.module)
        gradients = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        pairs = zip(parameters.items(), gradients, strict=True)
        unused = [name for (name, p), g in pairs if g is None and p.numel()]
        if unused:
            warnings.warn(
                f"the loss does not depend on {', '.join(unused)}: they only decay and follow Delta_G; freeze them",
                stacklevel=2,
            )
