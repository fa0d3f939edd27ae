"""Residual means of adapters against dense weights, in every engine, and after a stop."""

import pytest
import torch
from support.adapters import merged_weights, resume_after_one_round, simulation

from fedadamw.validation import InputError

GIVEN = ("lora.target_modules=[query,dense]", "lora.alpha=7")


def dense_of(sim, y, base=None):
    """The adapted layers' weights of the model `y` (d,), by peft's own sum."""
    sim.workspace.load(y, sim.state.statistics)
    if base is not None:
        sim.folding.load(base)
    return merged_weights(sim.workspace.module)


def step_with_models(sim):
    """Take a round; return its clients' models, and weights that add up to 1."""
    sent, weighting = [], sim.training.weighting
    sim.listeners[:] = [lambda shard, answer: sent.append((answer.up.delta.clone(), answer.samples))]
    x = sim.state.server.x.clone()
    record = sim.step()
    counts = torch.tensor([float(n) if weighting == "samples" else 1.0 for _, n in sent], dtype=torch.float64)
    return [x + delta for delta, _ in sent], counts / counts.sum(), record


@pytest.mark.parametrize(("stack", "weighting"), [(1, "uniform"), (3, "samples")])
def test_the_residual_mean_is_that_of_the_dense_weights_and_nothing_restarts(place, double, stack, weighting):
    sim = simulation(place, *GIVEN, "lora.aggregate=residual", f"training.weighting={weighting}", stack=stack)
    for _ in range(2):
        base = sim.state.base.clone()
        models, weights, _ = step_with_models(sim)
        each = [dense_of(sim, y, base) for y in models]
        found = dense_of(sim, sim.state.server.x, sim.state.base)
        for name, weight in found.items():
            expected = sum(w * dense[name] for w, dense in zip(weights, each, strict=True))
            torch.testing.assert_close(weight, expected, rtol=0, atol=1e-10)
        mean = weights @ torch.stack(models)
        torch.testing.assert_close(sim.state.server.x, mean, rtol=0, atol=1e-12)
        assert not torch.allclose(sim.state.base, base, rtol=0, atol=1e-9)
    assert all(t.any() for name, t in sim.workspace.layout.views(sim.state.server.x).items() if "lora_B" in name)


def test_a_residual_mean_sends_what_an_exact_one_does(place):
    records = [simulation(place, *GIVEN, f"lora.aggregate={name}").step() for name in ("residual", "exact", "factors")]
    residual, exact, factors = records
    assert (residual.up_bytes, residual.down_bytes) == (exact.up_bytes, exact.down_bytes)
    assert residual.up_bytes == factors.up_bytes
    assert residual.down_bytes - factors.down_bytes == 3 * 4 * 2 * (32 * 32 * 2 + 2 * 32 * 48)


def test_the_residual_mean_survives_a_stop(place):
    given = (*GIVEN, "lora.aggregate=residual", "training.upload=top-k")
    whole, second = resume_after_one_round(place, *given)
    assert whole.evaluate() == second.evaluate()


def test_a_frozen_weight_of_half_precision_keeps_small_sums(place):
    from fedadamw.models.lora.means import Folding

    sim = simulation(place, *GIVEN)
    model = sim.workspace.module
    for name, parameter in model.named_parameters():
        if "base_layer.weight" in name:
            parameter.data = parameter.data.bfloat16()
    folding = Folding(model, "residual")
    assert folding.base.dtype == torch.float32
    small = torch.full_like(folding.base, 1e-5)
    total, x = folding.base, torch.zeros_like(sim.workspace.y)
    for _ in range(100):
        total, _ = folding.fold(total, small, x)
    folding.load(total)
    moved = next(p for name, p in model.named_parameters() if "base_layer.weight" in name)
    assert moved.dtype == torch.bfloat16
    expected = folding._weights.views(total)[next(iter(folding._named))]
    assert torch.equal(moved, expected.bfloat16())


@pytest.mark.parametrize("aggregate", ["exact", "residual"])
def test_what_the_server_must_not_change_or_layers_that_are_no_sums_are_refused(place, aggregate):
    with pytest.raises(InputError, match=f"lora.aggregate='{aggregate}' takes the clients' mean as it is"):
        simulation(place, f"lora.aggregate={aggregate}", "algorithm=fedadam")
    with pytest.raises(InputError, match=f"lora.aggregate='{aggregate}' averages products B A; with lora.dora=true"):
        simulation(place, f"lora.aggregate={aggregate}", "lora.dora=true")
    with pytest.raises(InputError, match=f"lora.aggregate='{aggregate}' supports linear layers only"):
        simulation(place, f"lora.aggregate={aggregate}", "lora.target_modules=[word_embeddings]")
