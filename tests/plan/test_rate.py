"""A round's time, by the rounds of a run that differs only in how much is trained."""

import json

import pytest

from fedadamw.plan.rate import seconds_a_round
from fedadamw.settings.load import load


def test_a_round_takes_as_long_as_its_samples():
    measured = load("digits", ["training.steps=5", "training.clients_per_round=4"])
    more = load("digits", ["training.steps=20", "training.clients_per_round=8", "training.rounds=99", "seed=7"])
    assert seconds_a_round(more, measured, [1.0, 3.0]) == pytest.approx(16.0)


@pytest.mark.parametrize("by_device", ["classes={slow: {share: 1, steps: 2}}", "time_budget_s=3"])
def test_with_steps_by_device_only_clients_are_in_proportion(by_device):
    measured = load("digits", ["training.clients_per_round=4", f"devices.{by_device}"])
    more, longer = (
        load("digits", [setting, f"devices.{by_device}"])
        for setting in ("training.clients_per_round=8", "training.steps=99")
    )
    assert seconds_a_round(more, measured, [1.0]) == pytest.approx(2.0)
    assert seconds_a_round(longer, measured, [1.0]) is None


@pytest.mark.parametrize(
    "change", ["model=vit-tiny", "algorithm=fedavg", "training.upload=int8", "threads=2", "devices={}"]
)
def test_another_job_has_no_time(change):
    assert seconds_a_round(load("digits", [change]), load("digits"), [1.0]) is None
    assert seconds_a_round(load("digits"), load("digits"), []) is None


def test_a_plan_of_a_runs_settings_tells_the_time_by_its_rounds(run_main, tmp_path):
    (tmp_path / "config.yaml").write_text(load("digits", ["device=cpu"]).to_yaml())
    rounds = [{"round": number, "wall_s": 2.0} for number in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in rounds))
    shown = run_main("plan", str(tmp_path / "config.yaml"), "-s", "training.rounds=90").stdout
    assert f"time       0:03:00 for 90 rounds of 2.0 s, by the 2 rounds in {tmp_path}" in shown
