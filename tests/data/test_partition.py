"""Partitions: every sample at most once, sizes as promised, however hard the split."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedadamw.data.partition import (
    Partition,
    hold_out,
    partition_by_classes,
    partition_by_column,
    partition_dirichlet,
    partition_iid,
    partition_mix,
)
from fedadamw.validation import InputError


def labels_of(samples, classes, seed=0):
    return np.random.default_rng(seed).integers(0, classes, samples)


def assert_used_once(partition):
    assert len(np.unique(partition.samples)) == len(partition.samples)
    assert partition.sizes.sum() == len(partition.samples)


CONCENTRATIONS = st.sampled_from([1e-6, 1e-3, 0.01, 0.1, 0.6, 10.0, 1e4])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), CONCENTRATIONS, st.integers(2, 12), st.integers(40, 400), st.integers(0, 10))
def test_mix_has_equal_sizes_and_uses_no_sample_twice(clients, concentration, classes, samples, seed):
    labels = labels_of(samples, classes, seed)
    labels[-1] = classes - 1
    partition = partition_mix(labels, clients, concentration, np.random.default_rng(seed))
    assert_used_once(partition)
    assert set(partition.sizes) == {samples // clients}
    assert (partition.counts(labels, classes).sum(1) == partition.sizes).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), CONCENTRATIONS, st.integers(0, 5), st.integers(200, 400), st.integers(0, 10))
def test_dirichlet_uses_every_sample_and_meets_the_minimum(clients, concentration, minimum, samples, seed):
    labels = labels_of(samples, 7, seed)
    partition = partition_dirichlet(labels, clients, concentration, minimum, np.random.default_rng(seed))
    assert_used_once(partition)
    assert len(partition.samples) == samples
    assert partition.sizes.min() >= minimum


def test_the_standard_case_that_other_splitters_give_up_on():
    labels = labels_of(5000, 10)
    partition = partition_dirichlet(labels, 100, 0.1, 5, np.random.default_rng(0))
    assert partition.sizes.min() >= 5
    assert partition.sizes.max() > 5 * partition.sizes.mean(), "and it is still unequal"


def test_too_many_clients_for_the_minimum():
    with pytest.raises(ValueError, match="100 clients with at least 5 samples each need 500; there are 400"):
        partition_dirichlet(labels_of(400, 3), 100, 0.1, 5, np.random.default_rng(0))


def test_a_smaller_concentration_is_harder():
    labels = labels_of(20_000, 10)

    def classes_seen(concentration):
        partition = partition_mix(labels, 100, concentration, np.random.default_rng(0))
        share = partition.counts(labels, 10) / partition.sizes[:, None]
        return (1 / (share**2).sum(1)).mean()  # the effective number of classes per client

    seen = [classes_seen(c) for c in (0.05, 0.3, 1.0, 100.0)]
    assert seen == sorted(seen)
    assert seen[0] < 2.5
    assert seen[-1] > 9


def test_class_mixes_follow_the_dirichlet_distribution():
    """Mean and variance of a Dirichlet(0.6) over 10 classes: 1/10, and 0.09 / 7."""
    labels = np.repeat(np.arange(10), 10_000)
    partition = partition_mix(labels, 200, 0.6, np.random.default_rng(1))
    shares = partition.counts(labels, 10) / partition.sizes[:, None]
    assert shares.mean() == pytest.approx(0.1)
    assert shares.var() == pytest.approx(0.09 / 7, rel=0.15)


def test_iid_and_classes_and_columns():
    labels = labels_of(1003, 10)
    generator = np.random.default_rng(0)
    iid = partition_iid(labels, 10, generator)
    assert_used_once(iid)
    assert set(iid.sizes) == {100, 101}
    classes = partition_by_classes(labels, 20, 2, generator)
    assert_used_once(classes)
    assert len(classes.samples) == 1003
    assert ((classes.counts(labels, 10) > 0).sum(1) == 2).all()
    natural = partition_by_column(np.array(["b", "a", "b", "c"]))
    assert [list(natural[i]) for i in range(3)] == [[1], [0, 2], [3]]
    assert natural.names == ("a", "b", "c")
    larger = partition_by_column(np.array(["b", "a", "b", "c", "c"]), minimum=2)
    assert ([list(larger[i]) for i in range(len(larger))], larger.names) == ([[0, 2], [3, 4]], ("b", "c"))
    with pytest.raises(ValueError, match="none of 2 clients has 3 samples or more"):
        partition_by_column(np.array([1, 2, 2]), minimum=3)
    with pytest.raises(ValueError, match="11 classes per client"):
        partition_by_classes(labels, 20, 11, generator)
    with pytest.raises(ValueError, match="cannot hold all 10"):
        partition_by_classes(labels, 2, 2, generator)


def test_a_class_that_no_sample_has_is_handed_to_nobody():
    labels = 1 + 2 * labels_of(600, 5)  # 1, 3, 5, 7 and 9
    generator = np.random.default_rng(0)
    for each in (1, 2, 5):
        classes = partition_by_classes(labels, 10, each, generator)
        assert ((classes.counts(labels, 11) > 0).sum(1) == each).all()
        same = partition_by_classes(labels // 2, 10, each, np.random.default_rng(1))
        assert same.fingerprint == partition_by_classes(labels, 10, each, np.random.default_rng(1)).fingerprint
    with pytest.raises(ValueError, match="6 classes per client, but the data has 5"):
        partition_by_classes(labels, 10, 6, generator)
    for found in (partition_mix(labels, 10, 0.1, generator), partition_dirichlet(labels, 10, 0.1, 5, generator)):
        assert_used_once(found)
        assert len(found.samples) == 600
        assert found.sizes.min() >= 5


def test_a_hundred_thousand_samples_are_drawn_in_well_under_a_second():
    labels = labels_of(100_000, 100)
    generator = np.random.default_rng(0)
    draws = [
        lambda: partition_mix(labels, 100, 0.1, generator),
        lambda: partition_dirichlet(labels, 100, 0.1, 10, generator),
        lambda: partition_by_classes(labels, 100, 2, generator),
    ]
    for draw in draws:
        best = min(_seconds(draw) for _ in range(3))
        assert best < 1.0  # they take 0.02 s: this guards the order of growth, not the speed


def _seconds(draw):
    start = time.perf_counter()
    draw()
    return time.perf_counter() - start


def test_a_fingerprint_tells_partitions_apart():
    labels = labels_of(500, 5)

    def draw(seed):
        return partition_mix(labels, 10, 0.5, np.random.default_rng(seed)).fingerprint

    assert draw(0) == draw(0) != draw(1)


def test_a_client_that_does_not_exist():
    partition = partition_iid(labels_of(10, 2), 2, np.random.default_rng(0))
    assert len(list(partition)) == 2
    with pytest.raises(IndexError, match="client 2 of 2"):
        partition[2]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.floats(0.001, 0.999), st.integers(0, 10))
def test_a_client_holds_out_its_share_and_trains_on_the_rest(sizes, share, seed):
    numbers = np.random.default_rng(seed).permutation(1000)[: sum(sizes)]
    partition = Partition(numbers, np.cumsum(sizes))
    train, held_out = hold_out(partition, share, np.random.default_rng(seed))
    for i, n in enumerate(sizes):
        assert sorted([*train[i], *held_out[i]]) == sorted(partition[i])
        assert len(held_out[i]) == (0 if n < 2 else min(max(round(n * share), 1), n - 1))
    again = hold_out(partition, share, np.random.default_rng(seed))
    assert again[1].fingerprint == held_out.fingerprint


def test_every_sample_is_held_out_with_the_same_probability():
    partition = Partition(np.arange(20), np.array([10, 20]))
    counts = np.zeros(20)
    for seed in range(2000):
        counts[hold_out(partition, 0.3, np.random.default_rng(seed))[1].samples] += 1
    assert np.abs(counts / 2000 - 0.3).max() < 0.05


def test_samples_of_one_row_are_held_out_together():
    partition, rows = Partition(np.arange(40), np.array([20, 40])), np.arange(40) // 4 * 3
    train, held_out = hold_out(partition, 0.4, np.random.default_rng(0), rows)
    assert list(held_out.sizes) == [8, 8]
    assert set(rows[held_out.samples]).isdisjoint(rows[train.samples])


def test_a_sample_that_a_client_has_several_times_is_held_out_whole_or_not_at_all():
    partition = Partition(np.array([7, 7, 7, 1, 2, 4, 4, 5]), np.array([5, 8]))
    for seed in range(20):
        parts = hold_out(partition, 0.4, np.random.default_rng(seed))
        train, held_out = (set(part.samples.tolist()) for part in parts)
        assert not train & held_out
        assert train | held_out == {1, 2, 4, 5, 7}


def test_clients_that_share_a_sample_hold_out_no_share():
    with pytest.raises(InputError, match="sample 4 belongs to several clients"):
        hold_out(Partition(np.array([3, 4, 4, 5]), np.array([2, 4])), 0.5, np.random.default_rng(0))


def test_names_of_clients_stay_when_they_hold_out():
    train, held_out = hold_out(partition_by_column(np.array(["b", "a"] * 5)), 0.2, np.random.default_rng(0))
    assert train.names == held_out.names == ("a", "b")


def test_a_hundred_thousand_clients_hold_out_their_share():
    partition = Partition(np.arange(10**6), np.arange(1, 100_001) * 10)
    train, held_out = hold_out(partition, 0.2, np.random.default_rng(0))
    assert (set(train.sizes), set(held_out.sizes)) == ({8}, {2})
