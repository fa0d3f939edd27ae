"""A run keeps the kind of local step that it started with."""

import json
from dataclasses import replace

import pytest
import torch

from fedadamw.checkpoint import CheckpointError, read
from fedadamw.engine import fused, personal
from fedadamw.prepare.simulation import prepare
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.step_kind import choose_step
from fedadamw.settings.load import load

SETTINGS = ["training.rounds=2", "training.steps=2", "threads=1", "stack=1"]


def run(out, *settings, until=2, resume=False):
    """Run it to a round; return its model and losses there."""
    experiment = load("digits", [*SETTINGS, *settings])
    execute(experiment, RunFolder(out), resume=resume, report=False, on_round=lambda record: record.round == until)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    state, _ = read(out / "checkpoint" / "state.safetensors", "checkpoint")
    return state["server.x"], [json.loads(line)["train_loss"] for line in lines]


def write_step(out, step):
    """Change the kind of step in a manifest; None: one of an earlier version, which has none."""
    path = out / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop("step")
    path.write_text(json.dumps(manifest if step is None else {**manifest, "step": step}))


@pytest.fixture
def kinds(monkeypatch):
    """The kinds of the steps that runs make."""
    made, make = [], personal.make_step
    monkeypatch.setattr(personal, "make_step", lambda *args: made.append(args[-1]) or make(*args))
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run without a stop."""
    return run(tmp_path_factory.mktemp("whole") / "run")


def test_a_resumed_run_takes_the_same_steps_bit_for_bit(tmp_path, whole, kinds):
    run(tmp_path, until=1)
    x, losses = run(tmp_path, resume=True)
    assert torch.equal(x, whole[0])
    assert losses == whole[1]
    assert kinds == ["fused", "fused"]


def test_a_run_of_a_version_without_fused_steps_goes_on_with_plain_ones(tmp_path, whole, kinds, monkeypatch):
    run(tmp_path, until=1)
    write_step(tmp_path, None)
    monkeypatch.setattr(fused, "record", None)  # which no plain step calls
    _, losses = run(tmp_path, resume=True)
    assert kinds == ["fused", "plain"]
    assert losses == pytest.approx(whole[1], rel=1e-5)


@pytest.fixture(scope="module")
def prepared():
    return prepare(load("digits", SETTINGS))


@pytest.mark.parametrize(
    ("setting", "written", "kind"),
    [
        ("auto", "plain", "plain"),
        ("auto", "compiled", "compiled"),
        ("on", "fused", "compiled"),
        ("off", "plain", "plain"),
        ("off", "compiled", "fused"),
        ("on", None, "compiled"),
        ("off", None, "plain"),
    ],
)
def test_a_resumed_run_obeys_its_manifest_unless_told_otherwise(setting, written, kind, prepared):
    manifest = {} if written is None else {"step": written}
    changed = replace(prepared, experiment=load("digits", [*SETTINGS, f"compile={setting}"]))
    assert choose_step(changed, manifest) == kind


@pytest.mark.parametrize("written", ["quick", 5, ["fused"]])
def test_an_unknown_kind_in_a_manifest_is_refused(written, prepared):
    with pytest.raises(CheckpointError, match=r"^manifest.json: step=.* is unknown; a run has one of compiled, fused"):
        choose_step(prepared, {"step": written})
