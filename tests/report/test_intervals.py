"""Statistics over seeds against numbers from tables, formulas by hand, and simulation."""

import math
import statistics
from itertools import pairwise

import numpy as np
import pytest

from fedadamw.report.intervals import adjust_holm, compare_pairs, mean_interval, power, seeds_needed

T_QUANTILES = {
    2: 12.7062,
    3: 4.30265,
    5: 2.77645,
    9: 2.30600,
}  # 97.5% of Student's t by count, from a table


@pytest.mark.parametrize("count", T_QUANTILES)
def test_an_interval_of_few_seeds_is_students(count):
    values = [0.5, 0.7, 0.4, 0.65, 0.55, 0.6, 0.62, 0.48, 0.51][:count]
    found = mean_interval(values)
    half = T_QUANTILES[count] * statistics.stdev(values) / math.sqrt(count)
    mean = statistics.mean(values)
    assert found[:2] == (pytest.approx(mean - half, rel=1e-4), pytest.approx(mean + half, rel=1e-4))
    assert found.method == "t"


def test_one_seed_has_no_interval():
    assert mean_interval([0.5]) is None
    assert compare_pairs([0.5], [0.25]) == (1, 0.25, None, None, None, None)


def test_from_ten_seeds_on_an_interval_is_a_bootstraps_and_the_same_each_time():
    values = [*np.random.default_rng(1).normal(size=40)]
    found = mean_interval(values)
    assert found.method == "bootstrap"
    assert found == mean_interval([*values])
    half = 1.96 * statistics.stdev(values) / math.sqrt(40)  # for forty values nearly that of a normal distribution
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    assert mean_interval([0.5] * 10)[:2] == (0.5, 0.5)
    assert mean_interval(values[:9]).method == "t"


def test_a_paired_test_by_hand():
    first, second = [0.80, 0.82, 0.79], [0.78, 0.79, 0.78]  # differences 0.02, 0.03, 0.01: mean 0.02, deviation 0.01
    found = compare_pairs(first, second)
    t = 0.02 / (0.01 / math.sqrt(3))
    p = 1 - t / math.sqrt(t * t + 2)  # two-sided, two degrees of freedom
    assert (found.seeds, found.difference, found.p) == (3, pytest.approx(0.02), pytest.approx(p, rel=1e-9))
    assert found.interval[:2] == (pytest.approx(0.02 - 0.0248414, abs=1e-6), pytest.approx(0.02 + 0.0248414, abs=1e-6))
    assert (found.p_wilcoxon, found.seeds_needed) == (None, 5), "as an effect of 2 needs five"


def test_wilcoxon_from_ten_seeds_on():
    differences = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, -0.005]
    found = compare_pairs(differences, [0.0] * 10)
    assert found.p_wilcoxon == pytest.approx(2 * 2 / 2**10), "the least rank is negative: 2 of the 1024 sets of signs"
    assert found.interval.method == "bootstrap"


def test_equal_differences_are_not_tested():
    found = compare_pairs([0.3, 0.4, 0.5], [0.2, 0.3, 0.4])
    assert (found.difference, found.p, found.seeds_needed) == (pytest.approx(0.1), None, None)


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (-0.5, 34)])
def test_seeds_needed_are_those_of_published_tables_of_power(effect, seeds):
    """G*Power and statsmodels' TTestPower, rounded up: two-sided 5%, power 80%."""
    assert seeds_needed(effect) == seeds


def test_power_is_how_often_a_simulated_test_finds_the_effect():
    draws = np.random.default_rng(0).normal(0.9, 1.0, size=(20_000, 6))
    t = draws.mean(1) / (draws.std(1, ddof=1) / math.sqrt(6))
    assert power(0.9, 6) == pytest.approx((abs(t) > 2.570582).mean(), abs=0.01)


def test_power_grows_with_seeds_and_effects_however_large():
    for seeds in (2, 3, 10, 1000, 10_000):
        values = [power(effect, seeds) for effect in np.geomspace(1e-3, 1e3, 50)]
        assert all(a <= b + 1e-9 for a, b in pairwise(values))
        assert 0.05 <= values[0] <= values[-1] <= 1
    assert (seeds_needed(1e6), seeds_needed(1e-6), seeds_needed(0.0)) == (2, None, None)


def test_holms_correction_of_a_textbook_example():
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm([0.5, 0.9]) == [1.0, 1.0]
    assert adjust_holm([]) == []
