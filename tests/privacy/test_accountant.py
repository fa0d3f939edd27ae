"""The accountant against published numbers, and against the analytic Gaussian mechanism."""

import importlib
import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from fedadamw.privacy.accountant import Mechanism, compute_epsilon, find_noise_multiplier
from fedadamw.validation import InputError

KNOWN = (  # noise multiplier, rate, times, delta, epsilon by privacy loss distributions
    (1.0, 1.0, 1, 1e-5, 4.37718),
    (1.0, 1.0, 20, 1e-5, 28.3735),
    (1.5, 0.04, 2250, 1e-5, 6.7688),
    (1.5, 0.05, 1000, 1e-6, 6.1997),
    (0.8, 0.05, 100, 1e-6, 6.7306),
    (4.0, 0.01, 10000, 1e-5, 0.9470),
    (1.0, 0.05, 400, 1e-5, 6.7000),
    (1.0, 0.1, 300, 1e-3, 9.0495),
)


def analytic_epsilon(noise, times, delta):
    """The exact epsilon of `times` Gaussian mechanisms (Balle and Wang 2018, Theorem 5), by bisection."""
    mu = math.sqrt(times) / noise

    def delta_at(epsilon):
        a, b = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
        return norm.cdf(a) - math.exp(epsilon + norm.logcdf(b))

    low, high = 0.0, mu**2 / 2 + mu * 40
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize(("noise", "rate", "times", "delta", "epsilon"), KNOWN)
def test_published_numbers(noise, rate, times, delta, epsilon):
    assert compute_epsilon([Mechanism(noise, rate, times)], delta) == pytest.approx(epsilon, abs=1e-3)


def test_the_twin_has_the_known_numbers():
    assert analytic_epsilon(1.0, 1, 1e-5) == pytest.approx(4.377178, abs=1e-6)
    assert analytic_epsilon(1.0, 20, 1e-5) == pytest.approx(28.373474, abs=1e-6)


@settings(max_examples=12, deadline=None)
@given(
    noise=st.floats(0.4, 20.0),
    times=st.integers(1, 2000),
    delta=st.sampled_from([1e-3, 1e-5, 1e-7]),
)
def test_never_below_the_analytic_gaussian_nor_far_above(noise, times, delta):
    exact = analytic_epsilon(noise, times, delta)
    found = compute_epsilon([Mechanism(noise, 1.0, times)], delta)
    assert exact * (1 - 1e-9) <= found <= exact * 1.001 + 1e-4


@settings(max_examples=6, deadline=None)
@given(noise=st.floats(0.6, 5.0), rate=st.floats(0.01, 0.9), times=st.integers(1, 500))
def test_a_smaller_rate_more_noise_and_fewer_times_spend_less(noise, rate, times):
    def spend(noise, rate, times):
        return compute_epsilon([Mechanism(noise, rate, times)], 1e-5)

    spent = spend(noise, rate, times)
    assert spend(noise, rate * 0.8, times) <= spent * (1 + 1e-3)
    assert spend(noise * 1.1, rate, times) <= spent * (1 + 1e-3)
    assert spent <= spend(noise, rate, times + 1) * (1 + 1e-3)
    assert spent <= spend(noise, 1.0, times) * (1 + 1e-3)


def test_mechanisms_of_several_runs_add_up():
    one, other = Mechanism(1.0, 0.05, 200), Mechanism(2.0, 1.0, 3)
    both = compute_epsilon([one, other], 1e-5)
    assert max(compute_epsilon([one], 1e-5), compute_epsilon([other], 1e-5)) < both
    assert both < compute_epsilon([one], 5e-6) + compute_epsilon([other], 5e-6), "basic composition bounds it"
    assert compute_epsilon([one, one], 1e-5) == compute_epsilon([one._replace(times=400)], 1e-5)
    two_noises = compute_epsilon([Mechanism(1.0, 1.0, 4), Mechanism(2.0, 1.0, 9)], 1e-5)
    assert two_noises == pytest.approx(analytic_epsilon(1.0, 4 + 9 / 4, 1e-5), rel=1e-4), "Gaussians add in variance"
    assert compute_epsilon([one, Mechanism(30.0, 0.001, 5000)], 1e-5) == pytest.approx(
        compute_epsilon([one], 1e-5), rel=0.01
    )


def test_nothing_drawn_spends_nothing_and_no_noise_everything():
    assert compute_epsilon([], 1e-5) == 0
    assert compute_epsilon([Mechanism(1.0, 0.0, 10), Mechanism(0.0, 0.5, 0)], 1e-5) == 0
    assert compute_epsilon([Mechanism(0.0, 0.5, 1), Mechanism(9.0, 0.5, 1)], 1e-5) == math.inf
    assert compute_epsilon([Mechanism(1e-4, 0.5, 1000)], 1e-5) == math.inf, "too little to be counted"


@pytest.mark.parametrize(("epsilon", "rate", "times"), [(0.3, 0.02, 300), (3.0, 1.0, 100), (8.0, 0.1, 1000)])
def test_the_noise_for_a_target_never_exceeds_it_and_is_close(epsilon, rate, times):
    noise = find_noise_multiplier(epsilon, 1e-5, rate, times)
    spent = compute_epsilon([Mechanism(noise, rate, times)], 1e-5)
    assert epsilon * (1 - 1e-3) <= spent <= epsilon


def test_wrong_numbers_are_named():
    with pytest.raises(InputError, match=r"delta=1 must be above 0 and below 1"):
        compute_epsilon([Mechanism(1.0, 0.5, 1)], 1.0)
    with pytest.raises(InputError, match=r"no such mechanism: Mechanism\(noise_multiplier=1.0, rate=1.5, times=1\)"):
        compute_epsilon([Mechanism(1.0, 1.5, 1)], 1e-5)
    with pytest.raises(InputError, match=r"privacy.epsilon=1e\+06 must be above 0 and at most 1000"):
        find_noise_multiplier(1e6, 1e-5, 0.5, 1)
    with pytest.raises(InputError, match=r"privacy.epsilon=900 is more than is spent"):
        find_noise_multiplier(900.0, 1e-5, 0.001, 1)
    with pytest.raises(InputError, match=r"privacy.delta=1e-300 is below 1e-14, where no epsilon is computed"):
        find_noise_multiplier(1.0, 1e-300, 0.5, 1)


@pytest.mark.parametrize(("noise", "rate", "times"), [(1.0, 3.2e-5, 10_000), (0.6, 1e-4, 1000)])
def test_a_client_with_very_many_samples_has_an_epsilon_no_larger_than_by_renyi_divergence(noise, rate, times):
    dp_accounting = pytest.importorskip("dp_accounting")
    accountant = importlib.import_module("dp_accounting.rdp").RdpAccountant()
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, times))
    assert 0 < compute_epsilon([Mechanism(noise, rate, times)], 1e-5) < accountant.get_epsilon(1e-5)


def test_extreme_mechanisms_have_an_epsilon():
    own = [Mechanism(1.0, 0.05, 100)]
    alone = compute_epsilon(own, 1e-5)
    for extreme in (Mechanism(1e200, 1.0, 1), Mechanism(2.0, 1e-300, 1)):
        assert compute_epsilon([extreme], 1e-5) < 1e-6
        assert compute_epsilon([*own, extreme], 1e-5) == pytest.approx(alone, rel=1e-6)


def test_a_tiny_epsilon_has_a_noise_too():
    noise = find_noise_multiplier(1e-9, 1e-5, 0.1, 4)
    assert compute_epsilon([Mechanism(noise, 0.1, 4)], 1e-5) <= 1e-9
    assert compute_epsilon([Mechanism(noise / 2, 0.1, 4)], 1e-5) > 1e-9


def test_without_the_library_the_extra_is_named(monkeypatch):
    from fedadamw.privacy import accountant

    accountant._one_step.cache_clear()
    accountant._epsilon.cache_clear()
    monkeypatch.setitem(sys.modules, "dp_accounting.pld", None)
    with pytest.raises(InputError, match=r"an epsilon needs dp-accounting: pip install 'dp-accounting>=0.6,<0.7'"):
        compute_epsilon([Mechanism(1.0, 0.5, 1)], 1e-5)
