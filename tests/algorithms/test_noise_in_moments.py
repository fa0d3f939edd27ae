"""Known noise in gradients is subtracted from second moments, in every algorithm that has them on clients."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from support.cases import CASES
from support.runs import gradients_of_round, literal_problem, simulation
from support.sequences import attention_model

from fedadamw.algorithms import fields, registry
from fedadamw.algorithms.classes import takes_noise
from fedadamw.algorithms.fedavg import FedAvg
from fedadamw.algorithms.local_adamw import LocalAdamW
from fedadamw.blocks.blocks import Blocks
from fedadamw.directions.adamw import NO_NOISE, Moments, NoiseInMoments, adamw
from fedadamw.engine import step as step_module
from fedadamw.engine.states import clone_tensors
from fedadamw.engine.step import make_step
from fedadamw.vector import Layout, trainable

NOISE = NoiseInMoments(1e-5, 0.1)  # of the size of the small problem's squared gradients
NAMES = [
    "fedadamw-none",
    "fedadamw-vm",
    "fedadamw-mean-v",
    "fedadamw-memory-1",
    "fedadamw-bounded",
    "local-adamw",
    "local-adam",
    "fadamgc",
    "fedlada",
    "fedmuon",
    "fedlamb",
    "diloco",
    "diloco-reset",
    "muloco",
]
FAST = ("fedadamw-mean-v", "local-adamw", "fedlada")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in NAMES]
)
def test_every_engine_equals_the_literal_twin(name, task):
    case = CASES[name]
    loop = simulation(case, task, noise=NOISE, rounds=3)
    stacked = simulation(case, task, noise=NOISE, rounds=3, stack=2, step="plain")
    clients, training = loop.clients.partition, loop.training
    rounds = [(training.lr_at(r), gradients_of_round(task, clients, r, training)) for r in range(3)]
    x0 = Layout.of(attention_model()).flatten(trainable(attention_model())).tolist()
    problem = literal_problem(attention_model(), len(clients))
    expected = case.twin(x0, rounds, problem, **case.settings, noise=NOISE)
    for record, _, x in zip(loop.rounds(), stacked.rounds(), expected, strict=True):
        assert record.rejected == 0
        np.testing.assert_allclose(loop.state.server.x.numpy(), x, rtol=0, atol=1e-10)
        np.testing.assert_allclose(stacked.state.server.x.numpy(), x, rtol=0, atol=1e-10)
    without = simulation(case, task, rounds=3)
    list(without.rounds())
    assert float((without.state.server.x - loop.state.server.x).abs().max()) > 1e-4


def test_every_algorithm_with_second_moments_on_clients_is_told_of_noise():
    told = {name for name in registry.BUILT_IN if takes_noise(registry.BUILT_IN[name])}
    assert told == {CASES[name].name for name in NAMES}
    assert registry.make("fedavg", {}, Blocks.of(attention_model()), NOISE) == FedAvg()


def names_of_settings(kind):
    return [field.name for field in fields.read_imported(kind).fields]


def test_noise_is_no_setting():
    assert not any("noise" in settings for settings in fields.list_algorithms().values())
    assert not any("noise" in registry.settings_of(name) for name in registry.BUILT_IN)
    with pytest.raises(ValueError, match="algorithm.noise is unknown"):
        registry.validate("fedadamw", {"noise": [1.0, 0.1]})
    assert "noise" not in names_of_settings(LocalAdamW)


def test_a_field_of_the_same_name_but_another_type_is_a_setting():
    @dataclass(frozen=True, kw_only=True)
    class Noisy(FedAvg):
        noise: float = 0.1

    assert not takes_noise(Noisy)
    assert "noise" in names_of_settings(Noisy)


def directions(v, noise):
    """u for a first gradient whose square is v, with beta1 = 0."""
    g = torch.tensor(v, dtype=torch.float64).sqrt()
    zero, one = torch.zeros_like(g), torch.ones(1, dtype=torch.float64)
    u, moments = adamw(g, Moments(zero, zero), one, one, betas=(0.0, 0.999), eps=1e-300, noise=noise)
    torch.testing.assert_close(moments.v, 0.001 * g * g, rtol=1e-12, atol=0)  # the noise is in it still
    return (g / u) ** 2


def test_noise_is_subtracted_down_to_a_share_of_itself():
    torch.testing.assert_close(
        directions([5.0, 2.1, 2.0, 0.0, 1.0], NoiseInMoments(2.0, 0.25))[[0, 1, 2, 4]],
        torch.tensor([3.0, 0.5, 0.5, 0.5], dtype=torch.float64),
    )
    torch.testing.assert_close(directions([5.0], NO_NOISE), torch.tensor([5.0], dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of what its compiler imports
@pytest.mark.skipif(not step_module.has_compiler(torch.device("cpu")), reason="no C++ compiler")
@pytest.mark.parametrize("name", ["fedadamw-mean-v", "fedlada"])
def test_compiled_steps_equal_plain_ones(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    case, model, found = CASES[name], attention_model(), []
    algorithm = registry.make(case.name, case.settings, Blocks.of(model), NOISE)
    x = Layout.of(model).flatten(trainable(model))
    for kind in ("compiled", "plain"):
        take, lr, server = make_step(algorithm, 1.0, kind), x.new_tensor(0.01), algorithm.server_init(x)
        for gradients in 0.01 * torch.randn(2, 3, len(x), generator=torch.Generator().manual_seed(0), dtype=x.dtype):
            down = algorithm.broadcast(server)
            local = clone_tensors(algorithm.client_start(down, ()))
            for g in gradients:
                take(local, down, g, lr)
            up, _ = algorithm.client_finish(local, down, lr)
            server = algorithm.server_update(server, up, lr, torch.tensor(1.0))
        found.append(server)
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)
