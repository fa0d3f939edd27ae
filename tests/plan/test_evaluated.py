"""What it costs to evaluate clients on their own held-out samples."""

import pytest

from fedadamw.plan.counted import EVALUATION
from fedadamw.plan.data_shape import find_shape
from fedadamw.plan.evaluated import count_evaluated
from fedadamw.plan.plan import make_plan
from fedadamw.settings.load import load

SCORED = ["partition.held_out=0.2", "training={rounds: 12, steps: 10, batch_size: 7, client_evaluation: 5}"]


def evaluated(*settings):
    experiment = load("digits", [*SCORED, *settings])
    return count_evaluated(experiment, find_shape(experiment))


def test_it_is_the_held_out_samples_by_evaluation_against_those_that_are_trained_on():
    times, clients, samples, share, _ = evaluated("training.clients_per_round=4")
    assert (times, clients, samples) == (3, 100, 287), "after rounds 5, 10 and 12"
    assert share == pytest.approx(3 * 287 / (3 * 12 * 4 * 10 * 7))
    assert evaluated("training.evaluate_clients=10")[1:3] == (10, 29)
    assert "287 held-out samples of 100 clients, 3 times, about" in evaluated().describe()


def test_tuning_counts_as_local_steps_of_every_scored_client_and_one_more_evaluation():
    found = evaluated("training.clients_per_round=4", "personal.finetune=6")
    assert found.share == pytest.approx((4 * 287 / 3 + 100 * 6 * 7) / (12 * 4 * 10 * 7))
    assert ", 4 times, then 6 steps of tuning each, about" in found.describe()


def test_steps_by_class_are_weighed_by_their_shares():
    classes = "devices.classes={fast: {share: 0.25, steps: 40}, slow: {share: 0.75}}"
    share = evaluated("training.clients_per_round=4", classes).share
    assert share == pytest.approx(3 * 287 / (3 * 12 * 4 * (0.25 * 40 + 0.75 * 10) * 7))


def test_clients_of_a_column_are_not_known_before_the_data_are_read():
    by_column = ("partition.kind=column", "partition.column=writer")
    assert evaluated(*by_column) == (3, None, 287, None, 0)
    assert evaluated(*by_column, "training.evaluate_clients=10") == (3, 10, None, None, 0)


def test_a_run_that_evaluates_no_clients_has_no_such_cost():
    experiment = load("digits", ["partition.held_out=0.2"])
    assert count_evaluated(experiment, find_shape(experiment)) is None


@pytest.mark.slow
def test_the_memory_of_an_evaluation_is_that_of_the_larger_batch():
    few = [*SCORED, "data.max_test=10", "device=cpu"]
    plans = [make_plan(load("digits", [*few, f"training.client_evaluation={every}"])) for every in (0, 5)]
    without, scored = (sum(plan.phases[EVALUATION].values()) for plan in plans)
    assert scored > 2 * without
    assert plans[1].to_dict()["client_evaluation"]["samples"] == 287
