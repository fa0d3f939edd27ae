"""Tuning: grids that grow, trials that are stopped, fail or are killed, and the recipe that comes out."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import run_command
from support.studies import TINY, wait_for

from fedadamw.algorithms.fedadamw import FedAdamW
from fedadamw.settings.load import load
from fedadamw.study import tune
from fedadamw.study.search import MAX_ADDED, Search, open_journal

optuna = pytest.importorskip("optuna", reason="optuna is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def search(folder: Path, *given, only=("lr",), algorithm: str = "fedadamw") -> Search:
    """A search as `tune` begins it, and goes on with it, in `folder`."""
    folder.mkdir(exist_ok=True)
    return Search("digits", algorithm, given, only, folder / "runs", open_journal(folder / "optuna.log"))


def record(run, accuracies) -> None:
    """Leave what a run that came to these accuracies, one a round, leaves."""
    run.folder.path.mkdir(parents=True, exist_ok=True)
    run.folder.config.write_text(run.experiment.to_yaml())
    lines = [json.dumps({"round": i, "test_metrics": {"accuracy": a}}) for i, a in enumerate(accuracies, start=1)]
    run.folder.metrics.write_text("\n".join(lines) + "\n")


def lr(run) -> float:
    return run.experiment.training.lr


def whole(folder: Path) -> dict[Path, int]:
    """The records with all three rounds, and when they were written."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("metrics.jsonl") if p.read_bytes().count(b"\n") == 3}


def finish(found: Search, accuracy) -> list[float]:
    """Run the search to its end where a learning rate comes to `accuracy(lr)`; the rates in the order tried."""
    tried = []
    while not found.done:
        run = found.pending[0]
        found.begin(run)
        record(run, [accuracy(lr(run))])
        tried.append(lr(run))
        found.end(run)
    return tried


@pytest.mark.parametrize(
    ("peak", "tried", "at_edge"),
    [
        (1e-3, [3e-4, 1e-3, 3e-3], False),
        (9e-3, [3e-4, 1e-3, 3e-3, 9e-3, 2.7e-2], False),
        (1.0, [3e-4, 1e-3, 3e-3, 9e-3, 2.7e-2, 8.1e-2], True),
        (9e-5, [3e-4, 1e-3, 3e-3, 9e-5, 2.7e-5], False),
    ],
)
def test_a_grid_grows_while_its_best_is_at_its_edge(tmp_path, peak, tried, at_edge):
    found = search(tmp_path)
    assert finish(found, lambda value: -abs(value - peak)) == pytest.approx(tried)
    stage = found.history[0]
    assert stage["best"] == min(tried, key=lambda value: abs(value - peak))
    assert stage["at_edge"] == at_edge
    assert len(tried) <= 3 + 2 * MAX_ADDED
    again = search(tmp_path)
    assert again.done, "the journal knows it all"
    assert again.history == found.history


def test_a_score_that_is_not_a_number_is_worse_than_any_other(tmp_path):
    found = search(tmp_path)
    tried = finish(found, lambda value: None if value > 1e-3 else -1e3 * value)
    assert found.error is None
    assert found.best == {"lr": min(tried)}
    assert {t["value"]: t["state"] for t in found.history[0]["trials"]}[3e-3] == "failed"
    none = search(tmp_path / "none")
    finish(none, lambda _: None)
    assert none.error == ("fedadamw: no trial of lr finished: accuracy is not a number after the last round")


def test_a_trial_stopped_early_is_not_resumed(tmp_path):
    found = search(tmp_path, ("training.rounds", 9))
    first, second, third = found.pending
    for run, step in ((first, 0.05), (second, 0.1)):
        found.begin(run)
        record(run, [step * i for i in range(1, 10)])
        found.end(run)  # no one looked at it while it ran
    found.begin(third)
    record(third, [0.05])
    assert not found.should_stop(third), "too early to say"
    record(third, [0.05] * 7)
    assert found.should_stop(third)
    found.end(third, stopped=True)
    assert [t["state"] for t in found.history[0]["trials"]] == ["complete", "complete", "pruned"]
    assert found.best == {"lr": lr(second)}
    assert lr(third) not in map(lr, search(tmp_path, ("training.rounds", 9)).pending)


def test_a_stopped_trial_that_scored_above_the_final_best_resumes(tmp_path):
    found = search(tmp_path, ("training.rounds", 9))
    first, second, third = found.pending
    for run, falls in ((first, 0.03), (second, 0.05)):
        found.begin(run)
        record(run, [0.5 - falls * i for i in range(1, 10)])
        found.end(run)
    found.begin(third)
    record(third, [0.3] * 7)
    found.end(third, stopped=True)
    assert [lr(run) for run in found.pending] == [lr(third)], "0.3 is below the others then, and above their ends"
    again = search(tmp_path, ("training.rounds", 9))
    (run,) = again.pending
    again.begin(run)
    record(run, [0.3] * 8)
    assert not again.should_stop(run), "once is enough"
    record(run, [0.3] * 8 + [0.35])
    again.end(run)
    assert again.grid[-1] > lr(run), "it is the best now, and the grid grows beyond it"


@pytest.mark.slow
def test_a_run_is_stopped_early_and_its_stage_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "PRUNING_S", 0.0)
    given = [("training.rounds", 60), ("training.steps", 1), ("training.lr", 1e-3), ("data.max_test", 50)]
    monkeypatch.setattr(FedAdamW, "tuning", {"alpha": (0.0, 0.5)})
    monkeypatch.setattr(Search, "should_stop", lambda self, run: self._values[run.name] == 0.5 and len(run.records) > 0)
    found = tune.tune("digits", ["fedadamw"], given, tmp_path, quiet=True)
    assert found.errors == {}
    (stage,) = json.loads((tmp_path / "trials.json").read_text())
    assert [(t["value"], t["state"]) for t in stage["trials"]] == [(0.0, "complete"), (0.5, "pruned")]
    stopped = [p for p in tmp_path.rglob("metrics.jsonl") if p.read_text().count("\n") < 60]
    assert len(stopped) == 1, "its process was ended long before its last round"


def test_failures_are_retried_only_by_the_next_command(tmp_path):
    found = search(tmp_path)
    for run in found.pending:
        found.begin(run)
        found.end(run, error="failed: no memory")
    assert found.done
    assert found.error == "fedadamw: no trial of lr finished: failed: no memory"
    again = search(tmp_path)
    low, middle, high = again.pending
    for run in (low, middle):
        again.begin(run)
        record(run, [0.5 + 10 * lr(run)])
        again.end(run)
    again.begin(high)
    again.end(high, error="failed: round 3: not finite")
    assert again.best == {"lr": lr(middle)}, "the best beside what failed"
    assert [t["state"] for t in again.history[0]["trials"]] == ["complete", "complete", "failed"]


def test_results_of_other_settings_are_never_reused(tmp_path):
    finish(search(tmp_path), lambda value: value)
    assert search(tmp_path).done
    other = search(tmp_path, ("training.rounds", 7))
    assert len(other.pending) == 3
    assert search(tmp_path, only=("alpha",)).pending


def test_a_line_of_the_journal_that_was_cut_short_is_dropped(tmp_path):
    finish(search(tmp_path), lambda value: -abs(value - 1e-3))
    log = tmp_path / "optuna.log"
    log.write_bytes(log.read_bytes()[:-20])
    again = search(tmp_path)
    finish(again, lambda value: -abs(value - 1e-3))
    assert again.best == {"lr": 1e-3}
    assert search(tmp_path).done


def test_a_setting_that_the_algorithm_lacks_is_left_out(tmp_path):
    found = search(tmp_path, ("algorithm.alpha", 0.25), ("training.lr", 0.2), algorithm="fedavg", only=None)
    assert "lr" not in found.grids, "it is given"
    assert found.stage == "weight_decay"
    assert lr(found.pending[0]) == 0.2


@pytest.mark.slow
def test_a_failing_algorithm_does_not_stop_the_others(tmp_path):
    out = tmp_path / "out"
    given = ("-s", "training.rounds=2", "-s", "training.steps=1", "-s", "algorithm.server_lr=1e38")
    done = run_command("tune", "digits", "-a", "fedadam,fedavg", "--only", "lr", *given, "--out", str(out))
    assert done.returncode == 1
    assert "tuned.yaml: the tuned recipe" in done.stdout
    assert "error: fedadam: no trial of lr finished" in done.stderr
    assert "Traceback" not in done.stderr
    assert [stage["algorithm"] for stage in json.loads((out / "trials.json").read_text())] == ["fedavg"]
    assert load(str(out / "tuned.yaml"), ["algorithm.name=fedavg"]).training.lr > 0


@pytest.mark.slow
def test_tuning_never_sees_the_test_set_resumes_and_writes_a_recipe(tmp_path):
    arguments = ["tune", "digits", *TINY, "-s", "training.rounds=3", "-a", "fedadamw,fedavg", "--only", "lr,alpha"]
    arguments += ["--out", str(tmp_path / "out")]
    process = subprocess.Popen([sys.executable, "-m", "fedadamw", *arguments], stdout=subprocess.DEVNULL)
    wait_for(lambda: whole(tmp_path))
    process.send_signal(signal.SIGKILL)
    process.wait()
    early = whole(tmp_path)
    assert early
    done = run_command(*arguments)
    assert done.returncode == 0, done.stderr
    assert all(p.stat().st_mtime_ns == then for p, then in early.items()), "finished trials are not run again"
    trials = json.loads((tmp_path / "out" / "trials.json").read_text())
    assert [(t["algorithm"], t["setting"]) for t in trials] == [
        ("fedadamw", "lr"),
        ("fedadamw", "alpha"),
        ("fedavg", "lr"),
    ]
    assert "| tried: held-out accuracy |" in (tmp_path / "out" / "table.md").read_text()
    for stage in trials:
        complete = {t["value"]: t["score"] for t in stage["trials"] if t["state"] == "complete"}
        assert complete[stage["best"]] == max(complete.values())
    for manifest in tmp_path.rglob("manifest.json"):
        data = json.loads(manifest.read_text())["data"]
        assert (data["train"]["samples"], data["test"]["samples"]) == (1293, 144), "1,437 less a tenth, and that tenth"
    tuned = load(str(tmp_path / "out" / "tuned.yaml"), ["algorithm.name=fedavg"])
    assert tuned.training.lr == trials[-1]["best"]
    assert tuned.data.validation == 0.0
