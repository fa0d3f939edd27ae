"""Checks of an algorithm for its author's tests: what every engine relies on, tried on a small problem."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedadamw.algorithm import AnyAlgorithm, AnyState
from fedadamw.algorithms.classes import BLOCKS, check_class, defaults_of, has_blocks, parse_settings
from fedadamw.blocks.blocks import Blocks
from fedadamw.data.sums import Losses, Pooled
from fedadamw.engine.client import Broadcast
from fedadamw.engine.round import Aggregation, run_round
from fedadamw.engine.simulate import Simulation
from fedadamw.engine.state import Saved
from fedadamw.engine.states import clone_tensors, iterate_tensors
from fedadamw.engine.step import CHUNK, make_step
from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Batch, Evaluation, Model
from fedadamw.validation import check_one_of
from fedadamw.vector import Layout, all_finite

TOLERANCE = 1e-10  # in float64; relative for numbers above 1
SIZES = (5, 40, 13, 60, 22)  # the clients' samples, so that they take different numbers of steps
CODECS = ("float32", "bfloat16", "int8", "top-k")


class Traffic(NamedTuple):
    """What a client receives and sends in a round, in numbers, for a model of d numbers in B blocks."""

    d: int
    B: int
    down: int
    up: int


def check_algorithm(
    algorithm: type[AnyAlgorithm], settings: Mapping[str, Any] | None = None, *, lr: float = 0.01
) -> Traffic:
    """Check, in a few seconds, what every engine relies on; return what travels.

    Functions leave their arguments unchanged; clients stacked on an axis equal single ones; the clients' order does
    not matter; a run that is saved and restored continues bit for bit; uploads pass through every codec; `elementwise`
    and `adds_mean`, if set, hold. That the algorithm is the one you mean is for you to test: against a plain loop, or
    against an algorithm that it equals for some settings.

    lr: at which a small network trains. Raises AssertionError that says what does not hold; InputError if the class
    cannot be an algorithm or a setting is wrong.
    """
    check_class(algorithm)
    for key in settings or {}:
        check_one_of("setting", key, defaults_of(algorithm))
    values = parse_settings(algorithm, settings or {})

    def make(model: nn.Module) -> AnyAlgorithm:
        return algorithm(**values, **({BLOCKS: Blocks.of(model)} if has_blocks(algorithm) else {}))

    def simulate(upload: str = "float32", stack: int = 1, saved: Saved | None = None) -> Simulation:
        work = {"rounds": 3, "clients_per_round": 4, "epochs": 1, "batch_size": 8, "lr": lr, "upload": upload}
        training = TrainingSettings.model_validate(work)
        model, ends = make_network(4, 8, 3), np.cumsum(SIZES)
        clients = [np.arange(end - size, end) for size, end in zip(SIZES, ends, strict=True)]
        return Simulation.in_process(model, make(model), _Points(), clients, training, stack=stack, saved=saved)

    _check_functions(make)
    _check_pieces(make)
    _check_order(simulate())
    _check_runs(simulate)
    one = simulate()
    counted, size = one.step(), one.workspace.y.element_size() * one.training.clients_per_round
    blocks = Blocks.of(one.workspace.module)
    return Traffic(blocks.d, blocks.B, counted.down_bytes // size, counted.up_bytes // size)


def make_network(inputs: int, width: int, outputs: int) -> nn.Module:
    """Return a network with matrices, norms and a head in float64, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Linear(inputs, width), nn.Tanh(), nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh()
        return nn.Sequential(*layers, nn.Linear(width, outputs)).double()


class _Points(Pooled):
    """Classification of random points, client by client of other classes."""

    resident = True
    lengths = None
    held_out = 1
    kind = Losses()

    def __init__(self) -> None:
        self.labels = torch.arange(sum(SIZES)) // 50
        noise = torch.randn(len(self.labels), 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.points = noise + self.labels[:, None]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.zeros(count, 0)

    def batch(self, samples: Tensor, drawn: Tensor) -> Batch:
        return self.points[samples], self.labels[samples]

    def losses(self, model: Model, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    def outputs(self, model: Model, start: int, stop: int) -> Tensor:
        return self.losses(model, (self.points[start:stop], self.labels[start:stop]))[:, None]

    def outputs_of(self, model: Model, samples: Tensor) -> Tensor:
        return self.losses(model, (self.points[samples], self.labels[samples]))[:, None]

    def score(self, outputs: Tensor) -> Evaluation:
        return Evaluation(float(outputs.mean()), {"accuracy": 0.0})


def _check_functions(make: Callable[[nn.Module], AnyAlgorithm]) -> None:
    """Run a client's round by hand and compare every argument with a copy from before."""
    model = make_network(4, 8, 3)
    algorithm, x = make(model), Layout.of(model).flatten(dict(model.named_parameters()))
    lr, generator = x.new_tensor(0.01), torch.Generator().manual_seed(0)
    server = algorithm.server_init(x)
    down = _call(algorithm.broadcast, server)
    memory = _call(algorithm.client_init, down)
    own = algorithm.own_model
    is_model = own is None or getattr(getattr(memory, own, None), "shape", None) == x.shape
    _require(is_model, f"own_model is {own!r}, but the memory has no such field with the shape of the model")
    local = _call(algorithm.client_start, down, memory)
    for _ in range(3):
        local = _call(algorithm.client_step, local, down, torch.randn(x.shape, generator=generator, dtype=x.dtype), lr)
    up, _ = _call(algorithm.client_finish, local, down, lr)
    _require(all_finite(up), f"the upload is not finite after three steps: {up}")
    after = _call(algorithm.server_update, server, up, lr, x.new_tensor(0.5))
    _require(next(iter(up._asdict())) == "delta", f"the first field of {type(up).__name__} must be delta")
    if algorithm.adds_mean:
        _compare("adds_mean is True, but x after server_update", [after.x], [x + up.delta])


def _call(function: Callable[..., AnyState], *arguments: AnyState) -> AnyState:
    """Return function(*arguments); AssertionError if that changes an argument, or gives something else again."""
    before = [clone_tensors(argument) for argument in arguments]
    result, again = function(*arguments), function(*arguments)
    _require(_equal(before, arguments), f"{function.__name__} modifies its arguments")
    _require(_equal([result], [again]), f"{function.__name__} returns something else for the same arguments")
    return result


def _equal(states: AnyState, others: AnyState) -> bool:
    pairs = zip(iterate_tensors(states), iterate_tensors(others), strict=True)
    return all(torch.allclose(one, other, rtol=0, atol=0, equal_nan=True) for one, other in pairs)


def _check_pieces(make: Callable[[nn.Module], AnyAlgorithm]) -> None:
    """Compare a step as engines take it, in pieces if `elementwise` is set, with a step at once."""
    model = make_network(2, 400, 3)
    algorithm, d = make(model), Layout.of(model).d
    assert d > CHUNK
    x, g = torch.randn(2, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lr, down = x.new_tensor(0.01), algorithm.broadcast(algorithm.server_init(x))
    for kind in ("plain", "fused"):
        whole = algorithm.client_start(down, algorithm.client_init(down))
        pieces, step = clone_tensors(whole), make_step(algorithm, None, kind)
        for _ in range(2):
            step(pieces, down, g, lr)
            whole = algorithm.client_step(whole, down, g, lr)
        _compare("elementwise is True, but a step in pieces", [*iterate_tensors(pieces)], [*iterate_tensors(whole)])


def _check_order(simulation: Simulation) -> None:
    """Compare the mean upload of clients in two orders."""
    state = simulation.state
    broadcast = Broadcast(0, simulation.algorithm.broadcast(state.server), state.statistics, state.base)
    orders = [0, 1, 2, 3, 4], [4, 3, 2, 1, 0]
    one, other = (run_round(simulation.clients, order, broadcast, Aggregation()).up for order in orders)
    _compare("the mean over clients in another order", one, other)


def _check_runs(simulate: Callable[..., Simulation]) -> None:
    """Compare a run with one that was saved and restored, and with stacked clients; try every codec."""
    run = simulate()
    record = run.step()
    _require(not record.rejected, "a client's numbers are not finite: choose a smaller lr, or a bound")
    saved = Saved(run.state.round, {name: t.clone() for name, t in run.tensors().items()})
    ended = _finish(run)
    _compare("a run that was saved and restored", _finish(simulate(saved=saved)), ended, tolerance=0.0)
    _compare("a run with stacked clients", _finish(simulate(stack=4)), ended)
    for codec in CODECS[1:]:
        _finish(simulate(codec))


def _finish(simulation: Simulation) -> list[Tensor]:
    """Run the remaining rounds; return the server's state and the clients' memories."""
    list(simulation.rounds())
    return list(simulation.tensors().values())


def _compare(what: str, ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = TOLERANCE) -> None:
    """Raise AssertionError if tensors differ in shape or by more than `tolerance`."""
    for one, other in zip(ours, theirs, strict=True):
        _require(one.shape == other.shape, f"{what} has shape {tuple(one.shape)}, not {tuple(other.shape)}")
        difference = float(((one - other).abs() / other.abs().clamp(min=1)).max()) if one.numel() else 0.0
        _require(difference <= tolerance, f"{what} differs by {difference:.1e}, at most {tolerance:g} is rounding")


def _require(condition: bool, message: str) -> None:  # noqa: FBT001  (the condition is the argument)
    """Raise AssertionError unless the condition holds, also where Python leaves out `assert`."""
    if not condition:
        raise AssertionError(message)
