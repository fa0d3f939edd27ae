"""Several processes that train one client, each with a part of the frozen weights, match one process."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from support.checkout import ROOT
from support.command import run_command
from support.of_two_shards import TARGETS
from support.text_experiments import experiment
from support.tiny_models import folders

from fedadamw.engine.ranks import current_team
from fedadamw.prepare.checks import check_settings
from fedadamw.report.client_scores import NAME, read_lines
from fedadamw.runner.folder import RunFolder
from fedadamw.validation import InputError

STATE = "checkpoint/state.safetensors"
RUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def test_two_shards_have_the_gradients_of_one_process_and_half_of_the_layers(tmp_path):
    file = tmp_path / "seen.json"
    arguments = [sys.executable, *RUN, "-m", "support.of_two_shards", str(file)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, cwd=ROOT / "tests")
    assert done.returncode == 0, done.stderr
    for seen in json.loads(file.read_text()):
        assert seen.keys() == TARGETS.keys()
        for kind, of_kind in seen.items():
            assert of_kind["difference"] < 1e-12, kind
            assert 0.45 < of_kind["held"] < 0.55, kind


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fedadamw", "scaffold"])  # scaffold's clients have memories
def test_a_run_in_shards_ends_where_one_process_does(algorithm, tmp_path):
    folders(tmp_path, ["llama"])
    settings = [
        *("data.task=causal-lm", f"data.source={tmp_path / 'reviews.csv'}", f"model={tmp_path / 'llama'}"),
        *("data.validation=0.2", "partition={kind: iid, clients: 4, held_out: 0.3}", "lora={r: 2, dropout: 0.0}"),
        "training={rounds: 4, clients_per_round: 2, steps: 2, batch_size: 3, lr: 0.01, client_evaluation: 4}",
        *("device=cpu", "compile=off"),
        *("checkpoint_every=1", f"algorithm={algorithm}"),
    ]
    given = [word for setting in settings for word in ("-s", setting)]
    for name, more in {"alone": ["--ranks", "1"], "two": ["-s", "shards=2"], "four": ["-s", "shards=2"]}.items():
        ranks = ["--ranks", "4"] if name == "four" else []
        done = run_command("run", "digits", *given, *more, *ranks, "--out", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
    expected = load_file(tmp_path / "alone" / STATE)
    losses = [record["train_loss"] for record in RunFolder(tmp_path / "alone").records()]
    scores = read_lines(tmp_path / "alone" / NAME)[0]
    for name in ("two", "four"):
        tensors = load_file(tmp_path / name / STATE)
        assert tensors.keys() == expected.keys()
        for key, t in expected.items():
            torch.testing.assert_close(tensors[key], t, rtol=1e-3, atol=1e-5)
        assert [record["train_loss"] for record in RunFolder(tmp_path / name).records()] == pytest.approx(losses, 1e-4)
        (own,) = read_lines(tmp_path / name / NAME)
        assert (own["clients"], own["samples"]) == ([0, 1, 2, 3], scores["samples"])
        assert own["loss"] == pytest.approx(scores["loss"], 1e-4)
    done = run_command("eval", str(tmp_path / "two"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    {
        "all trained": ([], "shards=2 splits frozen weights: give lora"),
        "folded": (["lora.aggregate=exact"], "shards=2: lora.aggregate='exact' changes the frozen weights"),
        "stacked": (["lora={}", "stack=3"], "shards=2: clients train one after the other, not stack=3"),
    }.values(),
)
def test_settings_that_shards_do_not_allow_are_refused(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        check_settings(experiment(tmp_path, *settings, "shards=2", "training.clients_per_round=1"), remote=False)


def test_shards_need_as_many_processes(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match="shards=2 needs as many processes: --ranks 2"):
        current_team(torch.device("cpu"), 2)
    assert "WORLD_SIZE" not in os.environ
