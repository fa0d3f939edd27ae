"""`fedadamw privacy spent` of a node's ledger."""

import json

import pytest
from typer.testing import CliRunner

pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")

from fedadamw.cli import app
from fedadamw.flower.node.ledger import Charge, Ledger
from fedadamw.privacy.accountant import Mechanism, compute_epsilon

TRAINING = Charge("0123456789abcdef", 0, 1, 1.5, 0.5, 3)


def spent(*arguments):
    return CliRunner().invoke(app, ["privacy", "spent", *map(str, arguments)], catch_exceptions=True)


def charge(state, **other):
    Ledger.of(state).charge(TRAINING._replace(**other), lambda _: None)


def test_a_nodes_ledger_is_shown_by_run_and_in_all(tmp_path):
    charge(tmp_path)
    charge(tmp_path, run="other", epsilon=8.0, delta=1e-6)
    shown = spent(tmp_path)
    assert shown.exit_code == 0, shown.output
    total = compute_epsilon([Mechanism(1.5, 0.5, 6)], 1e-6)
    assert f"epsilon    {total:.4g} at delta 1e-06, of all runs together\n" in shown.output
    assert "0123456789ab " in shown.output
    assert "budget     8 at delta 1e-06, when the node last trained" in shown.output
    assert spent(tmp_path / "privacy/ledger.jsonl").output == shown.output
    told = json.loads(spent(tmp_path, "--json", "--delta", "1e-5").output)
    assert told["epsilon"] == pytest.approx(compute_epsilon([Mechanism(1.5, 0.5, 6)], 1e-5))
    assert [run["trainings"] for run in told["runs"]] == [1, 1]
    charge(tmp_path, noise_multiplier=0.0)
    assert (
        "epsilon    inf at delta 1e-05, of all runs together, since a training had no noise" in spent(tmp_path).output
    )
    assert json.loads(spent(tmp_path, "--json").output)["epsilon"] is None


def test_a_damaged_ledger_is_one_line(tmp_path):
    charge(tmp_path)
    (tmp_path / "privacy/ledger.jsonl").unlink()
    result = spent(tmp_path)
    assert result.exit_code != 0
    assert "ledger.jsonl is missing" in str(result.exception)


def test_delta_is_for_ledgers(tmp_path):
    result = spent(tmp_path, "--delta", "1e-6")
    assert "--delta 1e-06 is for a node's ledger" in str(result.exception)
    assert "a node's privacy ledger" in str(spent(tmp_path).exception)
