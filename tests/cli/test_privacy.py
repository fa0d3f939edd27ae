"""`fedadamw privacy plan`: what is spent, by which client, and what would help."""

import json
import math

import pytest

from fedadamw.plan.privacy import plan_privacy
from fedadamw.privacy.accountant import Mechanism, compute_epsilon
from fedadamw.settings.load import load

DIGITS = ["partition.clients=20", "training.rounds=10", "training.steps=3", "training.batch_size=30"]


def words(settings):
    return [word for setting in settings for word in ("-s", setting)]


def test_a_plan_has_the_epsilon_of_classes_of_clients_and_what_helps(run_main):
    given = [*DIGITS, "privacy.noise_multiplier=2"]
    plan = plan_privacy(load("digits", given))
    assert sum(each.clients for each in plan.classes) == 20
    assert max(each.epsilon for each in plan.classes) == plan.epsilon
    rate, times = plan.worst
    assert plan.epsilon == compute_epsilon([Mechanism(2.0, rate, times)], 1e-5)
    own = round(30 / rate)
    assert plan.ratio == pytest.approx(2 * math.sqrt(plan.trained) / min(30, own))
    assert len(plan.helps) == 4
    assert all(each.ratio < plan.ratio for each in plan.helps)
    shown = run_main("privacy", "plan", "digits", *words(given))
    assert shown.returncode == 0, shown.stderr
    assert f"{plan.epsilon:.4g} at delta 1e-05" in shown.stdout
    assert "training.batch_size=60" in shown.stdout
    assert f"{plan.trained:,} numbers are trained" in shown.stdout


def test_nodes_whose_sizes_are_given_may_work_in_every_round(run_main):
    given = [*DIGITS, "privacy.noise_multiplier=2", "partition.kind=nodes"]
    shown = run_main("privacy", "plan", "digits", *words(given), "--samples", "60,3000", "--json")
    assert shown.returncode == 0, shown.stderr
    told = json.loads(shown.stdout)
    assert [each["least"] for each in told["classes"]] == [60, 3000]
    assert told["classes"][0]["epsilon"] == compute_epsilon([Mechanism(2.0, 0.5, 30)], 1e-5)
    assert told["classes"][1]["epsilon"] == compute_epsilon([Mechanism(2.0, 0.01, 30)], 1e-5)


def test_a_plan_of_clients_counts_rounds(run_main):
    given = [*DIGITS, "privacy.unit=client", "privacy.epsilon=6"]
    told = json.loads(run_main("privacy", "plan", "digits", *words(given), "--json").stdout)
    assert told["worst"] == [0.5, 10]
    assert 6 * (1 - 1e-3) <= told["epsilon"] <= 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits"], "error: privacy: is null; this run has no differential privacy"),
        (
            ["digits", "-s", "privacy.epsilon=3", "--samples", "5,x"],
            "error: --samples 5,x: give whole numbers such as 500,2000",
        ),
        (
            ["digits", "-s", "privacy.noise_multiplier=1", "-s", "partition.kind=nodes"],
            "error: partition.kind='nodes': only nodes know how many samples they have; give some with --samples",
        ),
        (
            ["digits", "-s", "privacy.noise_multiplier=1", "-s", "privacy.epsilon=1"],
            "error: privacy: give one of noise_multiplier and epsilon",
        ),
    ],
)
def test_what_cannot_be_planned_is_one_line(arguments, message, run_main):
    done = run_main("privacy", "plan", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(message), done.stderr
    assert done.stderr.count("\n") == 1


def test_no_noise_is_said_as_it_is(run_main):
    shown = run_main("privacy", "plan", "digits", *words([*DIGITS, "privacy.noise_multiplier=0"]))
    assert shown.returncode == 0, shown.stderr
    assert "epsilon    inf at delta 1e-05" in shown.stdout
    assert "At the same epsilon" not in shown.stdout
