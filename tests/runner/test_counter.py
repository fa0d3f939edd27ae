"""A run keeps the counter of carried moments that it started with."""

import json
import shutil

import pytest
import torch
from support.checkout import ROOT

from fedadamw.checkpoint import CheckpointError, read
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load

BEGUN = ROOT / "tests" / "runner" / "begun_epochs"  # two of four rounds of clients with unequal K, before there was q


def run(out, until=4, resume=False, settings=()):
    """Run the begun run's settings to a round; return the counts and the model there."""
    execute(
        load(str(BEGUN / "config.yaml"), settings),
        RunFolder(out),
        resume=resume,
        report=False,
        on_round=lambda record: record.round == until,
    )
    state, _ = read(out / "checkpoint" / "state.safetensors", "checkpoint")
    return state["server.t"], state["server.x"]


def test_a_run_begun_without_q_goes_on_by_the_mean_number_of_steps(tmp_path):
    out = RunFolder(shutil.copytree(BEGUN, tmp_path / "begun"))
    t, _ = run(out.path, resume=True)
    assert t.tolist() == [pytest.approx(19.666667, rel=1e-6)], "as that version came to without a stop"
    rows = out.records()
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert rows[3]["train_loss"] == pytest.approx(1.398668885231018, rel=1e-5)
    assert rows[3]["test_loss"] == pytest.approx(1.8200724405050277, rel=1e-5)
    assert "counter" not in out.read_manifest()


def test_a_new_run_of_unequal_steps_counts_by_q_and_resumes_bit_for_bit(tmp_path):
    t, x = run(tmp_path / "whole")
    assert len(t) == 2
    assert 19 < t[0] < t[1] < 19.66, "less than by the mean, and of m still less"
    run(tmp_path / "parts", until=2)
    found = run(tmp_path / "parts", resume=True)
    assert torch.equal(found[0], t)
    assert torch.equal(found[1], x)
    assert RunFolder(tmp_path / "whole").read_manifest()["counter"] == "q"


def test_a_run_of_equal_steps_has_no_other_counter(tmp_path):
    t, _ = run(tmp_path / "run", until=1, settings=["training.epochs=null", "training.steps=3"])
    assert t.tolist() == [3.0]
    assert "counter" not in RunFolder(tmp_path / "run").read_manifest()


def test_an_unknown_counter_in_a_manifest_is_refused(tmp_path):
    out = shutil.copytree(BEGUN, tmp_path / "begun")
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "counter": "r"}))
    with pytest.raises(CheckpointError, match=r"^manifest.json: counter='r' is unknown; a run has 'q' or none$"):
        run(out, resume=True)
