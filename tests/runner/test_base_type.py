"""A run keeps the type of its base: a resumed one has it from the manifest, an older one has float32."""

import json

import pytest
import torch
from support import tiny_models
from support.trained_texts import settings_of

from fedadamw.checkpoint import CheckpointError, read
from fedadamw.prepare import base
from fedadamw.runner.digest import settings_digest
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.trained.load import open_run
from fedadamw.validation import InputError

ADAPTERS = ("lora.target_modules=[q_proj,v_proj]", "lora.r=4", "lora.dropout=0.1", "threads=1")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("types")
    tiny_models.half_folder(path / "llama", "llama", sizes=tiny_models.WIDE)
    for name, rows, seed in (("reviews.csv", 60, 0), ("more.csv", 30, 1)):
        tiny_models.reviews(path / name, rows=rows, seed=seed)
    return path


def run(place, out, *more, until=2, resume=False):
    """Run it to a round; return its model there."""
    experiment = load("digits", [*settings_of(place, "llama", "causal-lm", *ADAPTERS), *more])
    execute(experiment, RunFolder(out), resume=resume, report=False, on_round=lambda record: record.round == until)
    return read(out / "checkpoint" / "state.safetensors", "checkpoint")[0]["server.x"]


@pytest.mark.parametrize(
    "quantize", ["none", *(pytest.param(bits, marks=pytest.mark.slow) for bits in ("4bit", "8bit"))]
)
def test_a_resumed_run_has_the_same_base_bit_for_bit(place, tmp_path, quantize):
    if quantize != "none":
        pytest.importorskip("bitsandbytes", reason="the extra quant is not installed")
    more = f"model.quantize={quantize}"
    whole = run(place, tmp_path / "whole", more)
    run(place, tmp_path / "half", more, until=1)
    assert torch.equal(run(place, tmp_path / "half", more, resume=True), whole)


def test_a_run_of_a_version_without_types_goes_on_in_float32_bit_for_bit(place, tmp_path, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(base, "_choose_type", lambda *_: torch.float32)
        whole = run(place, tmp_path / "whole")
        run(place, tmp_path / "old", until=1)
    make_earlier(tmp_path / "old" / "config.yaml")
    assert "dtype" not in json.loads((tmp_path / "old" / "manifest.json").read_text())["model"]
    opened = open_run(tmp_path / "old")
    assert {p.dtype for p in opened.model.parameters()} == {torch.float32}
    assert torch.equal(run(place, tmp_path / "old", resume=True), whole)
    assert not torch.equal(run(place, tmp_path / "new"), whole)


def make_earlier(config):
    """Make a run's settings those of a version without types."""
    lines = [line for line in config.read_text().splitlines() if line.strip() not in ("dtype: auto", "quantize: none")]
    config.write_text("\n".join(lines) + "\n")


def test_new_runs_of_a_study_have_the_type_of_its_earlier_ones(place, tmp_path, monkeypatch):
    def in_study(seed):
        settings = [*settings_of(place, "llama", "causal-lm", *ADAPTERS), f"seed={seed}"]
        return tmp_path / f"fedadamw-seed{seed}-{settings_digest(load('digits', settings))[:10]}"

    with monkeypatch.context() as before:
        before.setattr(base, "_choose_type", lambda *_: torch.float32)
        run(place, in_study(0), "seed=0", until=1)
        whole = run(place, tmp_path / "whole", "seed=1", until=1)
    make_earlier(in_study(0) / "config.yaml")
    assert torch.equal(run(place, in_study(1), "seed=1", until=1, resume=True), whole)
    assert not torch.equal(run(place, tmp_path / "beside", "seed=1", until=1, resume=True), whole), "is no study's run"


def test_a_run_keeps_its_type_when_its_folder_of_weights_changes(place, tmp_path):
    run(place, tmp_path / "run", until=1)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["model"]["dtype"] == "bfloat16"
    with pytest.raises(InputError, match="other settings"):
        execute_folder(place, tmp_path / "run", "model.dtype=float32")
    manifest["model"]["dtype"] = "int8"
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises((InputError, CheckpointError), match="dtype='int8' is unknown"):
        run(place, tmp_path / "run", resume=True)


def execute_folder(place, out, *more):
    experiment = load("digits", [*settings_of(place, "llama", "causal-lm", *ADAPTERS), *more])
    RunFolder(out).check_settings(experiment)
