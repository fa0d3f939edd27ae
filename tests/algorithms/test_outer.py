"""The outer step: torch's SGD around any algorithm, its limits, and what cannot have it."""

import pytest
import torch
from support.cases import CASES, EVERYWHERE
from support.runs import simulation

from fedadamw.algorithms.fedavg import FedAvg, Up
from fedadamw.algorithms.outer import OuterStep, WithOuterStep
from fedadamw.algorithms.registry import BUILT_IN
from fedadamw.engine.parts import state_tensors
from fedadamw.engine.record import DivergedError
from fedadamw.engine.simulate import Saved
from fedadamw.prepare.checks import check_settings
from fedadamw.settings.load import load
from fedadamw.validation import InputError

OUTER = {"lr": 0.5, "momentum": 0.8, "nesterov": True}
FAST = ("fedadamw-mean-v", "scaffold")
AROUND = [
    pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow])
    for name, case in CASES.items()
    if BUILT_IN[case.name].adds_mean
]


def with_outer(name, outer):
    return CASES[name]._replace(training={"outer": outer})


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, False)])
def test_it_is_torch_sgd(momentum, nesterov):
    server_side = WithOuterStep(FedAvg(), OuterStep(momentum=momentum, nesterov=nesterov))
    x, one = torch.randn(6, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    p = torch.nn.Parameter(x.clone())
    sgd = torch.optim.SGD([p], lr=0.7, momentum=momentum, nesterov=nesterov)
    server = server_side.server_init(x)
    for _ in range(4):
        delta = torch.randn(6, dtype=torch.float64)
        server = server_side.server_update(server, Up(delta), one, one)
        p.grad = -delta
        sgd.step()
        torch.testing.assert_close(server.x, p.detach(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", AROUND)
def test_the_rest_of_an_algorithm_stays_as_it_is(name, task):
    """A round from the same state: the same clients, and a server that differs in x only."""
    ours, plain = simulation(with_outer(name, OUTER), task), simulation(CASES[name], task)
    for _ in range(2):
        x = ours.state.server.x
        inner = ours.state.server.inner._replace(x=x)
        plain.state = plain.state._replace(server=inner)
        ours.step()
        plain.step()
        delta = plain.state.server.x - x
        assert ours.state.server.inner.x.numel() == 0, "kept once"
        for ours_, plain_ in zip(ours.state.server.inner[1:], plain.state.server[1:], strict=True):
            assert torch.equal(ours_, plain_)
        assert float(delta.abs().max()) > 1e-5
    b = ours.state.server.b
    torch.testing.assert_close(ours.state.server.x - x, 0.5 * (delta - 0.8 * b), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FAST)
def test_rate_1_without_momentum_adds_the_mean(name, task):
    ours = simulation(with_outer(name, {"lr": 1.0, "momentum": 0.0}), task, rounds=2)
    plain = simulation(CASES[name], task, rounds=2)
    list(ours.rounds())
    list(plain.rounds())
    assert torch.equal(ours.state.server.x, plain.state.server.x)


def test_resume_between_rounds_is_bit_identical(task):
    case = EVERYWHERE["fedadamw-outer"]
    whole, first = simulation(case, task), simulation(case, task)
    list(whole.rounds())
    first.step()
    first.step()
    second = simulation(case, task, saved=Saved(2, first.tensors()))
    list(second.rounds())
    after = state_tensors(second.state.server, "server")
    assert {"server.x", "server.b", "server.inner.delta"} <= after.keys()
    assert all(torch.equal(after[name], t) for name, t in state_tensors(whole.state.server, "server").items())


def test_diloco_that_resets_and_adds_the_mean_is_local_adamw(task):
    settings = {"moments": "reset", "outer_lr": 1.0, "outer_momentum": 0.0}
    ours, local = simulation(CASES["diloco"]._replace(settings=settings), task), simulation(CASES["local-adamw"], task)
    for _ in zip(ours.rounds(), local.rounds(), strict=True):
        assert torch.equal(ours.state.server.x, local.state.server.x)
    assert not any(name.startswith("memory.") for name in ours.tensors())


def test_diloco_that_resets_is_local_adamw_under_the_outer_step(task):
    ours = simulation(CASES["diloco"]._replace(settings={"moments": "reset"}), task)
    local = simulation(with_outer("local-adamw", {}), task)
    for _ in zip(ours.rounds(), local.rounds(), strict=True):
        assert torch.equal(ours.state.server.x, local.state.server.x)


def test_muloco_without_the_outer_step_begins_as_fedmuon_without_alignment(task):
    added = {"outer_lr": 1.0, "outer_momentum": 0.0}
    ours = simulation(CASES["muloco"]._replace(settings=added), task)
    fedmuon = simulation(CASES["fedmuon"]._replace(settings={"alpha": 0.0}), task)
    ours.step()
    fedmuon.step()
    assert torch.equal(ours.state.server.x, fedmuon.state.server.x)


def test_a_client_of_diloco_keeps_the_moments_of_all_its_rounds(task):
    sim = simulation(CASES["diloco"], task, rounds=2, clients_per_round=5)
    list(sim.rounds())
    first, second = (sim.clients.store.get(0, round_) for round_ in (1, 2))
    assert second.t == 2 * first.t > 2
    assert float((second.m - first.m).abs().max()) > 1e-5


def test_muloco_keeps_no_second_moment_of_matrices(task):
    sim = simulation(CASES["muloco"], task)
    sim.step()
    memory = next(memory for i in range(5) if (memory := sim.clients.store.get(i, 1)) is not None)
    assert len(memory.v) == sim.workspace.layout.d - sim.algorithm.matrices.d < len(memory.m)
    assert float(memory.v.min()) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["algorithm=fedadam"], "training.outer is the server's step; the server of fedadam has one of its own"),
        (["algorithm=diloco"], "training.outer is the server's step; the server of diloco has one of its own"),
        (
            ["algorithm=scaffold", "algorithm.server_lr=0.5"],
            "set algorithm.server_lr=1 (not 0.5) and training.outer.lr",
        ),
        (["lora={aggregate: exact}"], "lora.aggregate='exact' takes the clients' mean as it is: no training.outer"),
        (
            ["lora={aggregate: residual}"],
            "lora.aggregate='residual' takes the clients' mean as it is: no training.outer",
        ),
    ],
)
def test_what_cannot_have_it_is_refused_in_one_line(settings, message):
    with pytest.raises(InputError) as refused:
        check_settings(load("digits", [*settings, "training.outer.lr=0.7"]), remote=False)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_rate_is_finite():
    with pytest.raises(InputError, match=r"training\.outer\.lr=inf: input should be a finite number"):
        load("digits", ["training.outer.lr=inf"])
    with pytest.raises(InputError, match="lr=inf must be above 0 and finite"):
        OuterStep(lr=float("inf"))


def test_a_step_that_is_too_long_is_named(task):
    sim = simulation(with_outer(FAST[0], {"lr": 3.0}), task)
    server = sim.state.server
    sim.state = sim.state._replace(server=server._replace(b=torch.full_like(server.b, 1e308)))
    with pytest.raises(DivergedError, match=r"training\.outer\.lr"):
        sim.step()
