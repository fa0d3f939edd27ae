"""The kinds of local step give the same numbers: plain, and by torch's fused kernels."""

from typing import NamedTuple

import pytest
import torch
from support.cases import CASES
from torch import Tensor

from fedadamw.algorithms import registry
from fedadamw.algorithms.classes import takes_noise
from fedadamw.algorithms.fedavg import FedAvg
from fedadamw.algorithms.local_adamw import LocalAdamW
from fedadamw.blocks.blocks import Blocks
from fedadamw.directions.adamw import NO_NOISE, Moments, NoiseInMoments, adamw
from fedadamw.directions.lion import lion
from fedadamw.engine import step as step_module
from fedadamw.engine import sums
from fedadamw.engine.states import clone_tensors, iterate_tensors, stack_states
from fedadamw.engine.step import make_step

NOT_RECORDED = {
    "ditto",
    "fedlada",
    "fedlamb",
    "fedmuon",
}  # FedLADA computes a ratio of its own, the others look at tensors
NOT_RECORDED |= {"ditto", "muloco", "fedadamw-cautious", "fedadamw-bounded"}  # these look at tensors or numbers

NOISE = NoiseInMoments(1.0, 0.1)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(sums, "CHUNK", 1000)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Tanh(), torch.nn.Linear(40, 50)).double()


def started(algorithm, d, dtype=torch.float64, rows=None):
    """(local, down) after a round: with a direction, and moments that are not zero."""
    x, delta = torch.randn(2, d, generator=torch.Generator().manual_seed(1), dtype=dtype)
    server, lr = algorithm.server_init(x), torch.tensor(0.01, dtype=dtype)
    down = algorithm.broadcast(server)
    local = clone_tensors(algorithm.client_start(down, algorithm.client_init(down)))
    make_step(algorithm, None, "plain")(local, down, delta, lr)
    up, _ = algorithm.client_finish(local, down, lr)
    server = algorithm.server_update(server, up, lr, torch.tensor(0.5, dtype=dtype))
    down = algorithm.broadcast(server)
    local = algorithm.client_start(down, algorithm.client_init(down))
    return (clone_tensors(local) if rows is None else stack_states([local] * rows)), down


def steps(algorithm, kind, d, *, clip=None, rows=None, dtype=torch.float64, count=4):
    """The tensors of a client, or of stacked ones, after some steps by random gradients, and the step itself."""
    local, down = started(algorithm, d, dtype, rows)
    step, generator = make_step(algorithm, clip, kind), torch.Generator().manual_seed(2)
    shape = (d,) if rows is None else (rows, d)
    for _ in range(count):
        g = torch.randn(shape, generator=generator, dtype=dtype)
        step(local, down, g, torch.tensor(0.01, dtype=dtype))
    return list(iterate_tensors(local)), step


D = sum(p.numel() for p in network().parameters())


def assert_equal_steps(algorithm, *, recorded, **how):
    ours, step = steps(algorithm, "fused", D, **how)
    theirs, _ = steps(algorithm, "plain", D, **how)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert step._can_record is recorded


@pytest.mark.parametrize("rows", [None, 3], ids=["one", "stacked"])
@pytest.mark.parametrize("clip", [None, 1.0], ids=["free", "clipped"])
@pytest.mark.parametrize(
    ("name", "noise"),
    [
        *((name, NO_NOISE) for name in CASES),
        *((name, NOISE) for name, case in CASES.items() if takes_noise(registry.BUILT_IN[case.name])),
    ],
)
def test_fused_steps_equal_plain_ones(name, noise, clip, rows):
    case = CASES[name]
    algorithm = registry.make(case.name, case.settings, Blocks.of(network()), noise)
    assert_equal_steps(algorithm, recorded=not NOT_RECORDED & {name, case.name}, clip=clip, rows=rows)


class Two(NamedTuple):
    """State of a client with two vectors besides the model."""

    y: Tensor
    a: Tensor
    b: Tensor


def own(step):
    """An algorithm with `step` of two vectors."""

    class Own(FedAvg):
        def client_start(self, down, memory):
            return Two(down.x, down.x * 0.5, down.x**2)

        client_step = staticmethod(step)

    return Own()


def averaged(local, down, g, lr):
    return Two(local.y - lr * g, 0.9 * local.a + 0.1 * local.y, local.b)


def swapped(local, down, g, lr):
    return Two(local.y - lr * g, local.b, local.a)


def squared(local, down, g, lr):
    return Two(local.y - lr * g * g, local.a, local.b)


def replaced(local, down, g, lr):
    return Two(local.y - lr * g, down.x, g)


def momentum(local, down, g, lr):
    return Two(local.y - lr * (g / 2 + -local.a), local.a.clone(), local.b)


def direction(local, g):
    k = torch.ones(1, dtype=torch.float64)
    return adamw(g, Moments(local.a, local.b), k, k, betas=(0.9, 0.999), eps=1e-8)


def unmoved(local, down, g, lr):
    return Two(local.y - lr * direction(local, g)[0], local.a, local.b)


def reads_moments(local, down, g, lr):
    u, (m, v) = direction(local, g)
    return Two(local.y - lr * u + 0.1 * local.a, m, v)


def twice(local, down, g, lr):
    u, _ = direction(local, g)
    other, (m, v) = direction(local, 2 * g)
    return Two(local.y - lr * (u + other), m, v)


def of_a_direction(local, down, g, lr):
    u, (m, v) = direction(local, g)
    other, _ = lion(u, down.x, betas=(0.9, 0.99))
    return Two(local.y - lr * other, m, v)


def masked(local, down, g, lr):
    return Two(local.y - lr * g * (local.a != 0), local.a, local.b)


def masked_by_a_moment(local, down, g, lr):
    u, (m, v) = direction(local, g)
    return Two(local.y - lr * u * (m == 0), m, v)


def conditional(local, down, g, lr):
    return Two(local.y - lr * g * bool(g), local.a, local.b)


def in_place(local, down, g, lr):
    m = local.a
    m *= 0.9
    m += g
    return Two(local.y - lr * m, local.a, local.b)


def along_itself(local, down, g, lr):
    u, (m, v) = direction(local, local.y)
    return Two(local.y - lr * (u + 0.1 * local.y), m, v)


def linear(local, down, g, lr):
    return Two(torch.sub(local.y, lr * g), torch.add(torch.mul(local.a, 0.5), g), local.b)


def on_a_sum(local, down, g, lr):
    u, (m, v) = direction(local, g + 0.1 * local.y - down.x)
    return Two(local.y - (u + 0.1 * local.y) * lr, m, v)


@pytest.mark.parametrize(
    "step",
    [
        averaged,
        swapped,
        squared,
        replaced,
        momentum,
        unmoved,
        reads_moments,
        twice,
        of_a_direction,
        masked,
        masked_by_a_moment,
        in_place,
        along_itself,
    ],
    ids=lambda f: f.__name__,
)
def test_what_cannot_be_recorded_takes_plain_steps(step):
    assert_equal_steps(own(step), recorded=False)


def test_a_vector_of_one_coordinate_is_true_or_false_by_its_number():
    ours, _ = steps(own(conditional), "fused", 1)
    theirs, _ = steps(own(conditional), "plain", 1)
    torch.testing.assert_close(ours, theirs)


class Counted(NamedTuple):
    """State of a client with a counter."""

    y: Tensor
    k: Tensor


def test_a_counter_that_moves_in_place_moves_once():
    class Own(FedAvg):
        def client_start(self, down, memory):
            return Counted(down.x, down.x.new_zeros(1))

        def client_step(self, local, down, g, lr):
            k = local.k
            k += 1
            return Counted(local.y - lr * g.sign(), k)

    (_, k), _ = steps(Own(), "fused", 50, count=3)
    assert float(k) == 3


def heavy_ball(local, down, g, lr):
    return Two(local.y + 0.9 * (local.y - local.a) - lr * g, local.y, local.a.view(-1))


@pytest.mark.parametrize("d", [50, step_module.CHUNK + 50], ids=["whole", "chunked"])
@pytest.mark.parametrize("kind", ["plain", "compiled"])
@pytest.mark.parametrize("step", [heavy_ball, swapped], ids=lambda f: f.__name__)
def test_a_state_may_keep_another_vector_of_the_state_before(step, kind, d):
    algorithm, x, lr = own(step), torch.linspace(-1, 1, d), torch.tensor(0.1)
    down = algorithm.broadcast(algorithm.server_init(x))
    local = clone_tensors(algorithm.client_start(down, ()))
    whole, take = clone_tensors(local), make_step(algorithm, None, kind)
    for g in torch.randn(3, d, generator=torch.Generator().manual_seed(0)):
        take(local, down, g, lr)
        whole = clone_tensors(algorithm.client_step(whole, down, g, lr))
    torch.testing.assert_close(list(local), list(whole))


@pytest.mark.parametrize("step", [linear, on_a_sum], ids=lambda f: f.__name__)
def test_sums_of_any_vectors_are_recorded(step):
    assert_equal_steps(own(step), recorded=True)


def test_an_error_in_a_step_is_its_own():
    def wrong(local, down, g, lr):
        return Two(local.y - lr * g.no_such_method(), local.a, local.b)

    with pytest.raises(AttributeError, match="'Tensor' object has no attribute 'no_such_method'"):
        steps(own(wrong), "fused", D)


def test_a_small_eps_is_not_lost_by_scaling():
    algorithm = LocalAdamW(eps=1.2e-38)
    ours, step = steps(algorithm, "fused", 50, dtype=torch.float32)
    assert all(t.isfinite().all() for t in ours)
    assert not step._can_record


def test_decay_keeps_the_digits_of_a_small_learning_rate():
    x, g = torch.rand(1000, generator=torch.Generator().manual_seed(0)), torch.zeros(1000)
    algorithm, lr = FedAvg(weight_decay=0.01), torch.tensor(1e-5)
    found = {}
    for kind in ("fused", "plain"):
        down = algorithm.broadcast(algorithm.server_init(x))
        local, step = clone_tensors(algorithm.client_start(down, ())), make_step(algorithm, None, kind)
        for _ in range(100):
            step(local, down, g, lr)
        found[kind] = local.y
    apart = (found["fused"] - found["plain"]).abs().max()
    assert float(apart) < 1e-7  # of a decay of 1e-5; y * float32(1 - 1e-7) would be 1.9e-6 off
