"""Carried moments of clients that take unequal numbers of steps: debiased, they are unbiased."""

import math

import numpy as np
import pytest
import torch
from support.cases import CASES
from support.runs import gradients_of_round, literal_problem, simulation
from support.sequences import attention_model

from fedadamw.algorithms import registry
from fedadamw.algorithms.counter import count_gradients, find_q
from fedadamw.blocks.blocks import Blocks
from fedadamw.directions.adamw import NO_NOISE, NoiseInMoments, debias
from fedadamw.engine.average import Mean
from fedadamw.engine.simulate import Saved
from fedadamw.prepare.counter import tell_unequal_steps
from fedadamw.vector import Layout, trainable

NOISE = NoiseInMoments(1e-5, 0.1)
COUNTED = ["fedadamw-v", "fedadamw-vm", "fedadamw-mean-v", "fedadamw-memory-2.5", "fedadamw-agreement", "fedlamb"]
COUNTED += ["fedadamw-m", "fedlada"]
FAST = ("fedadamw-vm", "fedlada")


def some(names):
    return [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in names]


def make(name, unequal=True, noise=NO_NOISE, **settings):
    case, model = CASES[name], attention_model()
    settings = registry.validate(case.name, {**case.settings, **settings})
    return tell_unequal_steps(registry.make(case.name, settings, Blocks.of(model), noise), None, unequal=unequal)


def noise_for(name):
    return NOISE if name == "fedlada" else NO_NOISE  # which counts only then


@pytest.mark.parametrize("name", some(COUNTED))
def test_every_engine_equals_the_literal_twin(name, task):
    noise, case, how = noise_for(name), CASES[name], {"unequal_steps": True, "rounds": 3}
    case = case._replace(settings={**case.settings, "betas": [0.9, 0.95]})
    loop = simulation(case, task, noise=noise, **how)
    stacked = simulation(case, task, noise=noise, stack=2, step="plain", **how)
    clients, training = loop.clients.partition, loop.training
    rounds = [(training.lr_at(r), gradients_of_round(task, clients, r, training)) for r in range(3)]
    x0 = Layout.of(attention_model()).flatten(trainable(attention_model())).tolist()
    settings = {key: value for key, value in case.settings.items() if key != "betas"}
    given = {"beta2": 0.95, "noise": noise if noise.variance else None, **settings}
    twins = [
        case.twin(x0, rounds, literal_problem(attention_model(), len(clients)), by_q=by_q, **given)
        for by_q in (True, False)
    ]
    for record, _, x in zip(loop.rounds(), stacked.rounds(), twins[0], strict=True):
        assert record.rejected == 0
        np.testing.assert_allclose(loop.state.server.x.numpy(), x, rtol=0, atol=1e-10)
        np.testing.assert_allclose(stacked.state.server.x.numpy(), x, rtol=0, atol=1e-10)
    assert np.abs(np.subtract(*(twin[-1] for twin in twins))).max() > 1e-7, "the mean of steps is another count"


def one_round(algorithm, server, steps, g, weights=None):
    """The server's state after a round of clients that take so many steps, each with the gradient g."""
    down, lr, mean = algorithm.broadcast(server), server.x.new_tensor(1e-3), Mean()
    for k, weight in zip(steps, weights or [1.0] * len(steps), strict=True):
        local = algorithm.client_start(down, ())
        for _ in range(k):
            local = algorithm.client_step(local, down, g, lr)
        up, _ = algorithm.client_finish(local, down, lr)
        mean.add(up, weight)
    return algorithm.server_update(server, type(up)(*mean.result()), lr, lr.new_tensor(1.0))


def moments_of_ones(name, dtype=torch.float64, unequal=True, rounds=3, t=0, steps=(2, 20), **settings):
    """v, and m if it is carried, debiased by t after rounds in which all gradients are 1, from t gradients before."""
    algorithm = make(name, unequal, noise_for(name), weight_decay=0.0, **settings)
    ones = torch.ones(Layout.of(attention_model()).d, dtype=dtype)
    server = algorithm.server_init(ones)
    if t:
        betas = settings["betas"]
        carried = {"m": (server.m, betas[0])} if hasattr(server, "m") else {}
        carried["v"] = (server.v, betas[1])
        full = {
            field: torch.ones_like(v) * debias(beta, ones.new_full((1,), t)) for field, (v, beta) in carried.items()
        }
        server = server._replace(t=torch.full_like(server.t, t), **full)
    for _ in range(rounds):
        server = one_round(algorithm, server, steps, ones)
    m = server.m / debias(algorithm.betas[0], server.t[:1]) if getattr(server, "m", ones[:0]).numel() else None
    return server.v / debias(algorithm.betas[1], server.t[-1:]), m, server.t


@pytest.mark.parametrize("name", COUNTED)
def test_debiased_moments_of_unequal_steps_are_unbiased(name):
    for found in moments_of_ones(name, betas=[0.9, 0.95])[:2]:
        if found is not None and found.numel():
            torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-10)


def test_by_the_mean_number_of_steps_they_are_biased():
    v, _, t = moments_of_ones("fedadamw-mean-v", unequal=False, rounds=1, betas=[0.9, 0.95])
    assert t.tolist() == [11.0]
    assert float(v[0]) == pytest.approx(0.37 / 0.43, abs=5e-3)


def test_a_kept_moment_counts_for_its_memory_at_most():
    v, m, t = moments_of_ones("fedadamw-vm", betas=[0.9, 0.95], memory=7.0)
    assert t.tolist() == [7.0, 7.0]
    for found in (v, m):
        torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-10)
    _, _, t = moments_of_ones("fedadamw-vm", betas=[0.9, 0.95], rounds=1, memory=8.9)
    assert t[0] < 8.5, "of m few gradients count: the client with 2 steps has most of the weight of its start"
    assert t[1] == 8.9


@pytest.mark.parametrize("steps", [(1, 2), (2, 20)])
@pytest.mark.parametrize(("beta2", "t"), [(0.999, 0), (0.99999, 0), (0.999, 100_000), (0.9999, 100_000), (0.9, 1e6)])
def test_counts_are_accurate_in_float32(beta2, t, steps):
    found = [
        moments_of_ones("fedadamw-mean-v", dtype, t=t, steps=steps, rounds=5, betas=[0.9, beta2])
        for dtype in (torch.float32, torch.float64)
    ]
    (v, _, t32), (_, _, t64) = found
    torch.testing.assert_close(t32.double(), t64, rtol=5e-7, atol=0)
    torch.testing.assert_close(v, torch.ones_like(v), rtol=3e-6, atol=0)
    assert t64 >= t + 5 * min(steps)


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_steps_give_the_same_bits(name, dtype):
    states = []
    for unequal in (False, True):
        algorithm = make(name, unequal, noise_for(name))
        g = torch.randn(Layout.of(attention_model()).d, generator=torch.Generator().manual_seed(0)).to(dtype)
        server = algorithm.server_init(torch.zeros_like(g))
        for steps in ([3] * 7, [5] * 3):
            server = one_round(algorithm, server, steps, g, weights=[0.3 + i for i in range(len(steps))])
        states.append(server._replace(t=server.t[:1]))
        assert len(set(server.t.tolist())) == 1
    for a, b in zip(*states, strict=True):
        assert torch.equal(a, b)


def test_clients_of_other_versions_of_the_model_count_by_their_discounts():
    """As in a buffer: moments from t = 4, 30 and 11 gradients; the mean of their counts is another one."""
    betas, mean = (0.95,), Mean()
    for t, k, discount in ((4.0, 2.0, 1.0), (30.0, 20.0, 3**-0.5), (11.0, 1.0, 0.5)):
        steps = torch.tensor([t + k], dtype=torch.float64)
        mean.add((debias(0.95, steps), find_q(steps, betas)), discount)
    v, q = mean.result()
    t = count_gradients(q, torch.tensor([40.0], dtype=torch.float64), betas)
    torch.testing.assert_close(v / debias(0.95, t), torch.ones_like(v), rtol=0, atol=1e-12)


def test_a_moment_without_memory_and_one_without_any_start_left_have_counts():
    t = torch.tensor([7.0, 9e6])
    q = find_q(t, (0.0, 0.999))
    assert q.tolist() == [0.0, 0.0]
    assert torch.equal(count_gradients(q, t, (0.0, 0.999)), t)
    late = count_gradients(q + 1e-320, t, (0.0, 0.999))
    assert late[0] == 1
    assert float(late[1]) == pytest.approx(708.4 / -math.log(0.999), rel=1e-3)


@pytest.mark.parametrize("name", some(["fedadamw-vm", "fedlamb"]))
def test_resume_between_rounds_is_bit_identical(name, task):
    whole, first, second = (simulation(CASES[name], task, unequal_steps=True, rounds=3) for _ in range(3))
    list(whole.rounds())
    first.step()
    second.restore(Saved(1, first.tensors()))
    list(second.rounds())
    for a, b in zip(second.state.server, whole.state.server, strict=True):
        assert torch.equal(a, b)
    assert len(whole.state.server.t) == (2 if name == "fedadamw-vm" else 1)


def test_it_is_no_setting():
    assert "unequal_steps" not in registry.settings_of("fedadamw")
    with pytest.raises(ValueError, match="algorithm.unequal_steps is unknown"):
        registry.validate("fedadamw", {"unequal_steps": True})


def test_only_algorithms_with_a_carried_count_send_q(task):
    for name, case in CASES.items():
        sim = simulation(case, task, unequal_steps=True, rounds=1)
        up = sim.clients.uploads.template(sim.algorithm.broadcast(sim.state.server))
        carries = name in COUNTED or case.settings.get("share") == "mean-v" or "memory" in case.settings
        counted = carries or (case.name == "fedadamw" and "share" not in case.settings)
        assert ("q" in up._fields) == (counted and name != "fedlada"), name
        if "q" in up._fields:
            assert (up.q.dtype, len(up.q)) == (torch.float64, 2 if case.settings.get("share") == "vm" else 1)
