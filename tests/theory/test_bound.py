"""The PAC-Bayes bound: its terms, its best weight decay, and that AdamW has the variances which it assumes."""

from math import inf, log, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedadamw.algorithms.local_adamw import LocalAdamW
from fedadamw.theory.bound import MOMENTS, Run, Shape, best_weight_decay, bound, check_rhos, kl_terms, list_bounds
from fedadamw.validation import InputError

ROUGH = Run(np.geomspace(1e-6, 10, 500), distance=30.0, samples=1437, lr=3e-3, batch_size=16, weight_decay=0.01)
FLAT = ROUGH._replace(root_h=np.zeros(500))


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_no_term_is_negative(r):
    assert kl_terms(np.array([r]))[0] >= 0


@given(st.floats(min_value=-1e-3, max_value=1e-3))
def test_no_term_is_negative_where_the_variances_are_nearly_equal(more):
    term = kl_terms(np.array([1 + more]))[0]
    assert term >= 0
    assert term == pytest.approx(more**2 / 2 - more**3 / 3, abs=1e-12)


@pytest.mark.parametrize("moments", MOMENTS)
def test_with_equal_variances_only_the_distance_is_left(moments):
    lr, b, rho, weight_decay = 3e-3, 4, 1e-2, 0.05
    root = lr / (2 * b * rho) if moments == "per-sample" else lr / (2 * rho) / sqrt(b)
    part = weight_decay if moments == "per-sample" else weight_decay / sqrt(b)
    run = Run(np.full(7, root - part), 30.0, 100, lr, b, weight_decay)
    found = bound(run, rho, weight_decay, moments=moments)
    assert found.kl == pytest.approx(30.0 / (2 * rho), rel=1e-12)
    assert found.gap == pytest.approx(sqrt((30.0 / (2 * rho) + log(2 * 10 / 0.05)) / 200), rel=1e-12)


def test_the_divergence_is_that_of_torchs_normal_distributions():
    rho, weight_decay = 0.02, 0.1
    x = torch.linspace(-1, 1, 500, dtype=torch.float64)
    run = ROUGH._replace(distance=float(x.square().sum()))
    s = run.lr / (2 * run.batch_size * (torch.from_numpy(run.root_h) + weight_decay))
    posterior = torch.distributions.Normal(x, s.sqrt())
    prior = torch.distributions.Normal(torch.zeros_like(x), torch.full_like(x, sqrt(rho)))
    expected = torch.distributions.kl_divergence(posterior, prior).sum()
    assert bound(run, rho, weight_decay, moments="per-sample").kl == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("rho", [1e-4, 1e-2, 3.0])
def test_without_curvature_the_best_weight_decay_is_lr_over_2_b_rho(rho):
    assert best_weight_decay(FLAT, rho, moments="per-sample") == pytest.approx(3e-3 / (2 * 16 * rho), rel=1e-6)
    assert best_weight_decay(FLAT, rho, moments="minibatch") == pytest.approx(3e-3 / (2 * rho), rel=1e-6)


@pytest.mark.parametrize("moments", MOMENTS)
@pytest.mark.parametrize("rho", [1e-6, 1e-4, 1e-3, 1.0])
def test_no_other_weight_decay_is_better(moments, rho):
    best = best_weight_decay(ROUGH, rho, moments=moments)
    shape = Shape.of(ROUGH, rho, moments)
    others = [0.0, *np.geomspace(1e-12, 1e3, 2001)]
    assert shape.width(best) <= min(map(shape.width, others)) * (1 + 1e-12)


def test_a_choice_of_several_priors_costs_their_number():
    alone, chosen = (list_bounds(ROUGH, rhos, moments="minibatch")[0][0] for rhos in ([1e-2], [1e-2, 1e-3, 1e-4]))
    assert chosen.kl == alone.kl
    assert 2 * 1437 * (chosen.gap**2 - alone.gap**2) == pytest.approx(log(3))


def test_a_coordinate_without_curvature_or_weight_decay_is_infinitely_far_from_the_prior():
    run = ROUGH._replace(root_h=np.array([0.0, 1.0]), weight_decay=0.0)
    own, best = list_bounds(run, [1e-2], moments="per-sample")[0]
    assert own.gap == inf
    assert best.weight_decay > 0
    assert best.gap < inf


@pytest.mark.parametrize("rhos", [[0.0], [-1.0], [float("inf")], [float("nan")], [1e-2, 1e-2]])
def test_a_prior_without_a_variance_is_refused(rhos):
    with pytest.raises(InputError, match="--rho"):
        check_rhos(rhos)


@pytest.mark.parametrize(("moments", "b"), [("per-sample", 1), ("minibatch", 16)])
def test_adamw_has_the_variances_that_the_bound_assumes(moments, b):
    """On f = h/2 x^2, whose samples' gradients have variance h, as at the minimum of a likelihood."""
    torch.manual_seed(0)
    h, lr, weight_decay = torch.tensor([0.25, 1.0, 4.0]).repeat(1000), 0.01, 0.1
    adamw = LocalAdamW(weight_decay=weight_decay)
    down = adamw.broadcast(adamw.server_init(torch.zeros(3000)))
    local, total, rate = adamw.client_start(down, ()), torch.zeros(3000), torch.tensor(lr)
    for step in range(3000):
        noise = (h / b).sqrt() * torch.randn(3000)
        local = adamw.client_step(local, down, h * local.y + noise, rate)
        if step >= 1500:
            total += local.y.square() / 1500
    measured = total.view(1000, 3).mean(0).double().numpy()
    run = Run(h[:3].double().sqrt().numpy(), 0.0, 1, lr, b, weight_decay)
    assumed = Shape.of(run, 1.0, moments).ratios(weight_decay)
    assert measured / assumed == pytest.approx(np.ones(3), abs=0.05)
