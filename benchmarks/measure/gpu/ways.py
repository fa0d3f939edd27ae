"""Part 4: ways to run the clients of a round: group sizes, two processes, CUDA graphs, a compiled model.

The record decides `default_stack` (prepare/simulation.py), and whether a graph of the local step is worth adopting.
All times are seconds of a client's local step: less is better, whatever the way.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from benchmarks.common.processes import run_again
from benchmarks.measure.gpu import two_processes
from benchmarks.measure.gpu.bench import Bench, SkippedError, WrongError, seconds_of
from benchmarks.measure.gpu.problems import paper_federation
from benchmarks.measure.gpu.record import Found
from benchmarks.measure.gpu.static_round import LoopRound, StackedRound, StaticRound
from fedadamw.engine.simulate import Simulation
from fedadamw.engine.workspace import autocast

COMPILE_S = 45.0
PRECISIONS = ("bf16", "float32")
NEAR = {"bf16": 0.02, "float32": 1e-4}  # relative difference of losses and gradients of two ways


def measure(bench: Bench) -> None:
    clients = bench.size(10, 2)
    shape = {"clients": clients, "steps": bench.size(10, 2), "batch": bench.size(50, 3)}
    bench.note(job=shape)
    groups = bench.size((10, 5, 2, 1), (2, 1))
    for precision in PRECISIONS:
        for group in groups:
            bench.measure(f"{precision}, groups of {group}", time_groups, bench, shape, precision, group)
    for precision in PRECISIONS:
        bench.measure(f"{precision}, graph of the loop's step", time_graph, bench, shape, precision, 1)
        bench.measure(f"{precision}, graph of all clients' step", time_graph, bench, shape, precision, clients)
    bench.measure("two processes", time_processes, bench, shape)
    if bench.small:
        return
    for precision in PRECISIONS:
        bench.measure(f"{precision}, compiled model under vmap", time_compiled, bench, shape, precision, clients)
        bench.measure(f"{precision}, compiled model in the loop", time_compiled, bench, shape, precision, 1)


def federation(bench: Bench, shape: dict[str, int], precision: str, stack: int, **how: Any) -> Simulation:
    return paper_federation(bench.device, **shape, precision=precision, stack=stack, small=bench.small, **how)


def per_step(seconds: float, shape: dict[str, int], clients: int) -> float:
    """Seconds of one client's local step."""
    return seconds / shape["steps"] / clients


def time_groups(bench: Bench, shape: dict[str, int], precision: str, group: int) -> Found:
    """Rounds of the engine that this group size means: the loop for 1, else stacked."""
    sim = federation(bench, shape, precision, group)
    first = seconds_of(sim.step, bench.device)
    times = [seconds_of(sim.step, bench.device) for _ in range(bench.size(5, 1))]
    found = {"client_step_s": per_step(statistics.median(times), shape, shape["clients"]), "first_round_s": first}
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
        sim.step()
        found["peak_gb"] = torch.cuda.max_memory_allocated(bench.device) / 1e9
    if group > 1 and sim.clients.engine.group != group:  # type: ignore[attr-defined]
        found["halved_to"] = sim.clients.engine.group  # type: ignore[attr-defined]
    return found


def time_graph(bench: Bench, shape: dict[str, int], precision: str, clients: int) -> Found:
    """The local round as a CUDA graph against the same steps started by Python: their models, and their times."""
    sim = federation(bench, shape, precision, clients)
    round_: StaticRound = LoopRound(sim) if clients == 1 else StackedRound(sim, clients)
    expected = round_.run(round_.step).clone()
    recorded = round_.recorded()
    models = round_.run(recorded)
    change = (expected - round_.begun.y).norm()
    apart = float((models - expected).norm() / change)
    found: Found = {"equal": torch.equal(models, expected), "of_change": apart, "graph": bench.device.type == "cuda"}
    if not apart <= 0.01:
        raise WrongError(f"the graph's models differ by {apart:.3g} of their change", found)
    for name, step in {"plain": round_.step, "graph": recorded}.items():
        times = [seconds_of(lambda step=step: round_.run(step), bench.device) for _ in range(bench.size(5, 1))]
        found[f"{name}_client_step_s"] = per_step(min(times), shape, clients)
    return found | {"graph_of_plain": found["graph_client_step_s"] / found["plain_client_step_s"]}


def time_processes(bench: Bench, shape: dict[str, int]) -> Found:
    """Two ranks on this device, which share the clients; their sums meet through Gloo, since NCCL takes one a card."""
    arguments = two_processes.arguments_of(bench, shape, PRECISIONS)
    try:
        found = run_again(two_processes.__file__, arguments, ranks=2, limit_s=max(bench.left(), 1.0))
    except SystemExit as error:
        raise RuntimeError(reason_of(str(error))) from None
    for of_precision in found.values():
        of_precision["client_step_s"] = per_step(of_precision.pop("round_s"), shape, shape["clients"])
    return found


def time_compiled(bench: Bench, shape: dict[str, int], precision: str, clients: int) -> Found:
    """Gradients of the clients by a compiled function of their models, against the engine's own way."""
    if bench.left() < COMPILE_S:
        raise SkippedError(f"compiling takes up to {COMPILE_S:.0f} s, and the part has {bench.left():.0f} s left")
    sim = federation(bench, shape, precision, clients)
    round_: StaticRound = LoopRound(sim) if clients == 1 else StackedRound(sim, clients)
    plain, compiled = (in_loop if clients == 1 else under_vmap)(sim, round_)
    (g, losses), (g_plain, losses_plain) = compiled(), plain()
    apart = float((g - g_plain).norm() / g_plain.norm())
    found: Found = {"gradients_differ": apart, "loss": float(losses.mean()), "loss_plain": float(losses_plain.mean())}
    if not apart <= NEAR[precision]:
        raise WrongError(f"the gradients differ by {apart:.3g}", found)
    for name, work in {"plain": plain, "compiled": compiled}.items():
        found[f"{name}_gradient_s"] = min(seconds_of(work, bench.device) for _ in range(10)) / clients
    return found | {"compiled_of_plain": found["compiled_gradient_s"] / found["plain_gradient_s"]}


def reason_of(output: str) -> str:
    """The last line of a process's output that names an error; torchrun prints more after it."""
    lines = [line for line in output.splitlines() if "Error: " in line and "ChildFailedError" not in line]
    return (lines or output.strip().splitlines() or ["no output"])[-1]


Gradients = Callable[[], tuple[Tensor, Tensor]]


def under_vmap(sim: Simulation, round_: StaticRound) -> tuple[Gradients, Gradients]:
    """The stacked engine's gradient, and a compiled one."""
    assert isinstance(round_, StackedRound)
    module, layout, task = sim.workspace.module, sim.workspace.layout, sim.task
    y, batch, weights = round_.local.y, round_.batch(), round_.weights

    def client_loss(parameters: dict[str, Tensor], inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        def model(x: Tensor) -> Any:
            return functional_call(module, parameters, (x,))

        return (task.losses(model, (inputs, labels)) * weights).sum()

    def gradients(parameters: dict[str, Tensor], inputs: Tensor, labels: Tensor, weights: Tensor) -> Any:
        return vmap(grad_and_value(client_loss))(parameters, inputs, labels, weights)

    compiled = torch.compile(gradients, fullgraph=True)  # else it runs uncompiled where something cannot be compiled

    def run() -> tuple[Tensor, Tensor]:
        with autocast(sim.training, y.device):
            named, losses = compiled(layout.views(y), *batch, weights)
        return torch.cat([named[name].flatten(1) for name in layout.names], -1), losses

    return lambda: round_.engine._backward(y, round_.buffers, batch, weights), run


def in_loop(sim: Simulation, round_: StaticRound) -> tuple[Gradients, Gradients]:
    """The loop's gradient, and that of a compiled module."""
    assert isinstance(round_, LoopRound)
    batch, gradient = sim.task.batch(round_.samples[0], round_.drawn[0]), sim.workspace.gradient
    module = torch.compile(sim.workspace.module, fullgraph=True)

    def plain() -> tuple[Tensor, Tensor]:
        gradient.zero_()
        loss = round_.engine._backward(batch)
        return gradient.clone(), loss

    def run() -> tuple[Tensor, Tensor]:
        gradient.zero_()
        with autocast(sim.training, gradient.device):
            loss = sim.task.losses(module, batch).mean()
        loss.backward()
        return gradient.clone(), loss.detach()

    return plain, run
