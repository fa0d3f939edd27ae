"""A local round on static tensors, which a CUDA graph can record: batch, forward, backward and step of every client.

A graph's kernels start without Python. Its tensors must stay where they are, so a step's sample numbers and draws are
copied into the place of the first ones. The steps are the engines' own; on a CPU, where there are no graphs, the same
calls are made again.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from fedadamw.algorithm import AnyState
from fedadamw.engine.client import plan_work
from fedadamw.engine.loop import Loop
from fedadamw.engine.simulate import Simulation
from fedadamw.engine.stacked import Stacked
from fedadamw.engine.stacked_batches import Plan
from fedadamw.engine.states import clone_tensors, iterate_tensors, map_tensors

WARM_UP = 3  # steps before recording: libraries choose kernels and allocate in their first calls


class StaticRound(ABC):
    """The local steps of some clients on tensors that never move."""

    local: AnyState  # the clients' states, which steps move

    def __init__(self, sim: Simulation, clients: int) -> None:
        self.sim, self.device = sim, sim.workspace.y.device
        self.down = sim.algorithm.broadcast(sim.state.server)
        self.lr = sim.workspace.y.new_tensor(sim.training.lr)
        self.begun = sim.algorithm.client_start(self.down, sim.algorithm.client_init(self.down))
        simulated = sim.clients
        work = [
            plan_work(sim.task, sim.training, 0, client, simulated.partition[client], 0)  # type: ignore[attr-defined]
            for client in range(clients)
        ]
        self.plan = Plan.of(work, like=sim.workspace.y, resident=True)
        self.samples, self.drawn = self.plan.samples[:, 0].clone(), self.plan.drawn[:, 0].clone()
        self.weights = self.plan.weights[:, 0]
        sim.workspace.module.train()

    @property
    def steps(self) -> int:
        """The number of local steps of the round."""
        return len(self.plan.active)

    def restart(self) -> None:
        """Go back to the start of the round."""
        for old, new in zip(iterate_tensors(self.local), iterate_tensors(self.begun), strict=True):
            old.copy_(new.expand_as(old))

    @abstractmethod
    def step(self) -> None:
        """Take one local step on `samples` and `drawn`."""

    def recorded(self) -> Callable[[], None]:
        """The step as a CUDA graph, after a few plain ones; on a CPU the step itself."""
        if self.device.type != "cuda":
            return self.step
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.step()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph.replay

    def run(self, step: Callable[[], None]) -> Tensor:
        """Run the round with `step`; returns the clients' models (clients, d)."""
        self.restart()
        for k in range(self.steps):
            self.samples.copy_(self.plan.samples[:, k])
            self.drawn.copy_(self.plan.drawn[:, k])
            step()
        y: Tensor = self.local.y
        return y.reshape(len(self.samples), -1)


class StackedRound(StaticRound):
    """All clients at once, with the stacked engine's gradient and step."""

    def __init__(self, sim: Simulation, clients: int) -> None:
        super().__init__(sim, clients)
        self.local = map_tensors(self.begun, lambda t: t.expand(clients, t.shape[-1]).clone())
        self.buffers = {n: b.expand(clients, *b.shape).clone() for n, b in sim.workspace.module.named_buffers()}
        engine = sim.clients.engine  # type: ignore[attr-defined]
        assert isinstance(engine, Stacked)
        self.engine = engine

    def batch(self) -> tuple[Tensor, ...]:
        """The clients' batches (clients, n, ...)."""
        batch = self.sim.task.batch(self.samples.flatten(), self.drawn.flatten(0, 1))
        return tuple(t.unflatten(0, self.samples.shape).contiguous() for t in batch)

    def step(self) -> None:
        g, _ = self.engine._backward(self.local.y, self.buffers, self.batch(), self.weights)
        with torch.no_grad():
            self.engine.step(self.local, self.down, g, self.lr)


class LoopRound(StaticRound):
    """One client in the workspace, with the loop engine's gradient and step."""

    def __init__(self, sim: Simulation) -> None:
        super().__init__(sim, 1)
        self.local = clone_tensors(self.begun)._replace(y=sim.workspace.y)
        engine = sim.clients.engine  # type: ignore[attr-defined]
        assert isinstance(engine, Loop)
        self.engine = engine

    def step(self) -> None:
        self.sim.workspace.gradient.zero_()
        self.engine._backward(self.sim.task.batch(self.samples[0], self.drawn[0]))
        with torch.no_grad():
            self.engine.step(self.local, self.down, self.sim.workspace.gradient, self.lr)
