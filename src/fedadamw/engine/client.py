"""One client, one round: the gradient oracle and the local loop around an algorithm."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.engine.randomness import Purpose, batches, numpy_generator, torch_generator, torch_seed
from fedadamw.engine.settings import Training
from fedadamw.engine.task import Batch, Task
from fedadamw.validation import InputError
from fedadamw.vector import Layout, Vector, bind, bind_gradients, statistics, trainable


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
        self.statistics: Vector = Layout.named(floating).flatten(floating).to(self.y)
        bind(floating, self.statistics)
        self._counters = [(b, b.clone()) for b in module.buffers() if not b.is_floating_point()]

    def load(self, y: Vector, statistics: Vector) -> None:
        """Put a model and its statistics into the module; counting buffers go back to their start."""
        self.y.copy_(y)
        self.statistics.copy_(statistics)
        for buffer, start in self._counters:
            buffer.copy_(start)


class GradientOracle:
    """Gradients of the task's loss at any flat model, clipped: all that an algorithm ever sees of a batch."""

    def __init__(self, workspace: Workspace, task: Task, clip: float | None) -> None:
        self.workspace, self.task, self.clip = workspace, task, clip
        self._checked = False

    def __call__(self, y: Vector, batch: Batch) -> tuple[Vector, Tensor]:
        """The gradient (d,) at `y` and the loss (), neither tied to a graph or to the workspace."""
        work = self.workspace
        work.y.copy_(y)
        work.gradient.zero_()
        loss = self.task.loss(work.module, batch)
        if not self._checked:
            self._warn_of_unreached(loss)
        loss.backward()
        return clipped(work.gradient, self.clip), loss.detach()

    def _warn_of_unreached(self, loss: Tensor) -> None:
        """Say once which parameters the loss does not depend on: torch's optimizers skip them, a flat step does not."""
        self._checked = True
        parameters = trainable(self.workspace.module)
        found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
        unreached = [name for name, g in zip(parameters, found, strict=True) if g is None]
        if unreached:
            warnings.warn(
                f"the loss does not depend on {', '.join(unreached)}: they only decay and follow Delta_G; freeze them",
                stacklevel=2,
            )


def clipped(g: Vector, norm: float | None) -> Vector:
    """A copy of `g` (d,), scaled down to the global norm `norm` where it is longer, as torch's clip_grad_norm_."""
    if norm is None:
        return g.clone()
    scale: Tensor = (norm / (torch.linalg.vector_norm(g) + 1e-6)).clamp(max=1.0)
    return g * scale


class Answer(NamedTuple):
    """What one client's round leaves."""

    up: Any  # the algorithm's Up
    memory: Any
    statistics: Vector  # (s,)
    loss: Tensor  # () mean over the local steps
    samples: int
    local: Any  # the algorithm's Local after the last step, for diagnostics

    @property
    def finite(self) -> bool:
        """Whether every number that travels is finite."""
        sent: Sequence[Tensor] = (*self.up, self.statistics)
        return all(bool(torch.isfinite(t).all()) for t in sent)


class Client:
    """Trains any client of a run in one workspace, one after the other."""

    def __init__(
        self, workspace: Workspace, algorithm: AnyAlgorithm, task: Task, training: Training, seed: int
    ) -> None:
        self.workspace, self.algorithm, self.task = workspace, algorithm, task
        self.training, self.seed = training, seed
        self.oracle = GradientOracle(workspace, task, training.clip)

    def train(
        self, client: int, samples: np.ndarray, round_: int, down: Any, memory: Any, statistics: Vector
    ) -> Answer:
        """One client's local steps in round `round_`, from what came down to what goes up."""
        algorithm, work, device = self.algorithm, self.workspace, self.workspace.y.device
        work.load(down.x, statistics)
        work.module.train()
        augment = torch_generator(self.seed, Purpose.AUGMENT, round_, client, device=device)
        torch.manual_seed(torch_seed(self.seed, Purpose.MODULE, round_, client))
        lr = work.y.new_tensor(self.training.lr_at(round_))
        if memory is None:
            memory = algorithm.client_init(down)
        local = algorithm.client_start(down, memory)
        losses = []
        for indices in self._batches(client, samples, round_):
            g, loss = self.oracle(local.y, self.task.batch(indices, augment))
            with torch.no_grad():
                local = algorithm.client_step(local, down, g, lr)
            losses.append(loss)
        up, memory = algorithm.client_finish(local, down, lr)
        return Answer(up, memory, work.statistics.clone(), torch.stack(losses).mean(), len(samples), local)

    def _batches(self, client: int, samples: np.ndarray, round_: int) -> list[np.ndarray]:
        training = self.training
        generator = numpy_generator(self.seed, Purpose.BATCHES, round_, client)
        return batches(samples, generator, batch_size=training.batch_size, steps=training.steps, epochs=training.epochs)
