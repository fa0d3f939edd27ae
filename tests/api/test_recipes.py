"""run and compare: what the commands of these names do, from Python."""

import json
import subprocess
import sys

import pytest
import torch

import fedadamw
from fedadamw.settings.load import load
from fedadamw.validation import InputError

SMALL = {
    "training.rounds": 2,
    "training.clients_per_round": 2,
    "training.steps": 2,
    "training.evaluate_every": 1,
    "partition.clients": 10,
    "threads": 1,
}
WORDS = [word for path, value in SMALL.items() for word in ("-s", f"{path}={value}")]


def test_a_recipe_runs_as_the_command_runs_it(tmp_path, run_main):
    result = fedadamw.run("digits", settings=SMALL, out=tmp_path / "python", quiet=True)
    assert run_main("run", "digits", *WORDS, "--out", str(tmp_path / "command"), "-q").returncode == 0
    states = [(tmp_path / name / "checkpoint" / "state.safetensors").read_bytes() for name in ("python", "command")]
    assert states[0] == states[1]
    assert (tmp_path / "python" / "config.yaml").read_text() == (tmp_path / "command" / "config.yaml").read_text()
    last = json.loads((tmp_path / "command" / "metrics.jsonl").read_text().splitlines()[-1])
    assert result.metrics == last["test_metrics"]
    again = fedadamw.run("digits", settings=SMALL, out=tmp_path / "command", resume=True, quiet=True)
    for a, b in zip(again.model.parameters(), result.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_experiment_runs_and_what_contradicts_it_is_refused(tmp_path):
    experiment = load("digits", [f"{path}={value}" for path, value in SMALL.items()])
    assert len(fedadamw.run(experiment, quiet=True).records) == 2
    with pytest.raises(InputError, match="in the experiment"):
        fedadamw.run(experiment, settings={"seed": 1})
    with pytest.raises(InputError, match="'digitz' is unknown.*digits"):
        fedadamw.run("digitz")
    fedadamw.run(experiment, out=tmp_path, quiet=True)
    with pytest.raises(InputError, match="other settings"):
        fedadamw.run("digits", out=tmp_path, settings={**SMALL, "seed": 1}, resume=True)


SCRIPT = """
import fedadamw
print("started")
study = fedadamw.compare("digits", ["fedadamw", "fedavg"], seeds=2, settings={settings!r}, out={out!r}, quiet=True)
table = study.to_pandas()
print(sorted(set(zip(table["variant"], table["seed"].tolist()))), sorted(set(table["round"].tolist())))
"""


@pytest.mark.slow
def test_a_script_compares_without_a_guard(tmp_path):
    """Processes of a study do not run the script again."""
    script = tmp_path / "study.py"
    script.write_text(SCRIPT.format(settings=SMALL, out=str(tmp_path / "study")))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "started",
        "[('fedadamw', 0), ('fedadamw', 1), ('fedavg', 0), ('fedavg', 1)] [1, 2]",
    ]
    assert "fedadamw" in (tmp_path / "study" / "table.md").read_text()


def test_a_study_of_no_algorithms_is_refused_and_leaves_no_folder(tmp_path):
    with pytest.raises(InputError, match="algorithms: give at least one"):
        fedadamw.compare("digits", [], out=tmp_path / "study", quiet=True)
    assert not (tmp_path / "study").exists()
