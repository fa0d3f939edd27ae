"""Studies as a user has them: compare, tune and ablate, killed, repeated, failing, and given wrong input."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.command import run_command
from support.studies import TINY, wait_for

from fedadamw import cli
from fedadamw.data.row_parts import count_cores
from fedadamw.settings.load import load
from fedadamw.study import results
from fedadamw.study.plan import plan


def compare(out: Path, *arguments: str, rounds: int = 3) -> subprocess.CompletedProcess:
    return run_command("compare", "digits", *TINY, "-s", f"training.rounds={rounds}", "--out", str(out), *arguments)


def read(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def without_times(results: dict) -> dict:
    """The results less what no two studies share."""
    text = json.dumps(results)
    kept = json.loads(text)
    for part in (*kept["runs"], *kept["summary"]):
        del part["wall_s"]
    return kept


def test_a_comparison_writes_all_its_files(finished):
    files = {"results.json", "table.md", "curves.png", "report.html", "runs", "export"}
    assert {p.name for p in finished.iterdir()} == files
    assert {p.name for p in (finished / "export").iterdir()} == {"scores.tex", "paired-tests.tex"}
    results = read(finished)
    assert [(r["variant"], r["seed"]) for r in results["runs"]] == [
        ("fedadamw", 0),
        ("fedavg", 0),
        ("fedadamw", 1),
        ("fedavg", 1),
    ]
    assert results["missing"] == []
    for summary in results["summary"]:
        finals = [r["score"][-1] for r in results["runs"] if r["variant"] == summary["variant"]]
        assert summary["score"] == pytest.approx(statistics.mean(finals), abs=1e-5)
        assert summary["score_sd"] == pytest.approx(statistics.stdev(finals), abs=1e-5)
    lrs = {s["variant"]: s["settings"]["lr"] for s in results["summary"]}
    assert lrs == {"fedadamw": 1e-3, "fedavg": 0.1}, "each has its own from the recipe"
    assert results["runs"][0]["diagnostics"][1]["cosine"] is not None
    table = (finished / "table.md").read_text()
    assert table.count("\n") == 4 + 3 + 4 + 1, "scores, what ± is, paired tests, which they are"
    assert "± " in table
    assert "95% intervals of the mean (Student t) over 2 seeds" in table
    (comparison,) = results["comparisons"]
    assert comparison["seeds"] == 2
    assert comparison["interval"]["low"] < comparison["difference"] < comparison["interval"]["high"]
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_finished_runs_are_not_run_again_and_a_study_can_grow(finished, tmp_path):
    grown = tmp_path / "grown"
    shutil.copytree(finished, grown)
    before = {p: p.stat().st_mtime_ns for p in grown.rglob("metrics.jsonl")}
    settings = ("-s", "training.diagnostics=true")
    done = compare(grown, "-a", "fedadamw,fedavg,fedcm", "--seeds", "2", *settings, rounds=6)
    assert done.returncode == 0, done.stderr
    assert "4 of 6 runs are done already" in done.stdout
    after = {p: p.stat().st_mtime_ns for p in grown.rglob("metrics.jsonl")}
    assert len(after) == 6
    assert before.items() <= after.items()


@pytest.mark.slow
def test_resume_gives_identical_results_after_sigkill(finished, tmp_path):
    arguments = ["compare", "digits", *TINY, "-s", "training.rounds=6", "-a", "fedadamw,fedavg", "--seeds", "2"]
    arguments += ["-s", "training.diagnostics=true", "--out", str(tmp_path / "killed")]
    for _ in range(2):
        before = rounds_in(tmp_path)
        process = subprocess.Popen(
            [sys.executable, "-m", "fedadamw", *arguments], stdout=subprocess.DEVNULL, start_new_session=True
        )
        wait_for(lambda: rounds_in(tmp_path) > before)  # noqa: B023  (called at once)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        wait_for(lambda: not living(process.pid), seconds=10)  # noqa: B023  (its children end with it)
        assert before < rounds_in(tmp_path) < 4 * 6, "in the middle of the work"
    done = run_command(*arguments, "-q")
    assert done.returncode == 0, done.stderr
    assert without_times(read(tmp_path / "killed")) == without_times(read(finished))


def rounds_in(folder: Path) -> int:
    """How many rounds the runs under `folder` have recorded."""
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("metrics.jsonl"))


def test_a_failing_run_is_reported_and_the_others_finish(tmp_path):
    recipe = yaml.safe_load(load("digits").to_yaml())
    recipe["training"] |= {"rounds": 2, "steps": 1, "clients_per_round": 2, "clip": None}
    recipe["algorithms"] = {"fedavg": {"lr": 1e30}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe))
    done = run_command(
        "compare",
        str(tmp_path / "own.yaml"),
        "-a",
        "fedavg,local-adamw",
        "--seeds",
        "1",
        "--out",
        str(tmp_path / "out"),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: fedavg, seed 0: failed: round" in done.stderr
    assert "sent numbers that are not finite" in done.stderr
    results = read(tmp_path / "out")
    assert [r["variant"] for r in results["runs"]] == ["local-adamw"]
    assert results["missing"][0]["variant"] == "fedavg"
    assert "fedavg, seed 0: failed" in (tmp_path / "out" / "table.md").read_text()
    assert "<b>Missing</b>" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.slow
def test_a_damaged_run_is_listed_as_missing_and_the_others_are_shown(finished, tmp_path):
    out = tmp_path / "damaged"
    shutil.copytree(finished, out)
    (records,) = out.glob("runs/fedavg-seed0-*/metrics.jsonl")
    records.write_text("{}\n" + records.read_text())
    (manifest,) = out.glob("runs/fedavg-seed1-*/manifest.json")
    manifest.write_text("")
    done = compare(out, "-a", "fedadamw,fedavg", "--seeds", "2", "-s", "training.diagnostics=true", rounds=6)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"error: fedavg, seed 0: failed: {records}" in done.stderr
    assert f"error: fedavg, seed 1: {manifest}: cannot be read" in done.stderr
    assert [(r["variant"], r["seed"]) for r in read(out)["runs"]] == [("fedadamw", 0), ("fedadamw", 1)]


@pytest.mark.slow
def test_if_every_run_fails_no_page_is_announced_and_an_old_one_is_removed(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns("runs", "export"))
    given = ("-a", "fedavg", "--seeds", "1", "-s", "training.lr=1e30", "-s", "training.clip=null")
    done = compare(out, *given)
    assert done.returncode == 1
    assert "report.html" not in done.stdout
    assert {p.name for p in out.iterdir()} == {"results.json", "table.md", "runs"}


@pytest.mark.slow
def test_ctrl_c_stops_every_process_after_saving_checkpoints(tmp_path):
    arguments = ["compare", "digits", *TINY, "-s", "training.rounds=400", "-a", "fedadamw,fedavg", "--seeds", "1"]
    arguments += ["--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedadamw", *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: len([p for p in tmp_path.rglob("metrics.jsonl") if p.stat().st_size]) == 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to all of the group
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "stopped; the same command resumes it\n"
    for checkpoint in tmp_path.rglob("runs/*"):
        assert (checkpoint / "checkpoint" / "state.safetensors").exists(), "each saved its last round"
    wait_for(lambda: not living(process.pid), seconds=10)


@pytest.mark.slow
def test_ctrl_c_during_startup_prints_one_line(tmp_path):
    arguments = ["compare", "digits", *TINY, "-a", "fedavg", "--seeds", "1", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "fedadamw", *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: any("forkserver" in line for line in command_lines(process.pid)))
    os.killpg(process.pid, signal.SIGINT)  # its fork server is importing torch
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "stopped; the same command resumes it\n")
    wait_for(lambda: not living(process.pid), seconds=10)


def command_lines(group: int) -> list[str]:
    """The command lines of a group's processes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group:
                found.append((folder / "cmdline").read_text())
        except OSError:  # it went while we looked
            continue
    return found


def living(group: int) -> list[str]:
    """The processes of a group that are not dead, as /proc describes them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except OSError:  # it went while we looked
            continue
        state, _, own_group = rest.split()[:3]
        if own_group == str(group) and state != "Z":
            found.append(name)
    return found


def in_process(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """Exit code and what was said on standard error."""
    monkeypatch.setattr(sys, "argv", ["fedadamw", *arguments])
    terminate = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    signal.signal(signal.SIGTERM, terminate)
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "-a", "fedavgg"], "algorithm='fedavgg' is unknown (did you mean 'fedavg'?)"),
        (["compare", "-a", "fedavg", "-s", "algorithm.alpha=[0,1]"], "algorithm.alpha is not a setting of fedavg"),
        (["compare", "-s", "seed=[1,2]"], "a comparison takes it from --seeds"),
        (["compare", "-s", "algorithm.name=fedavg"], "a comparison takes it from -a"),
        (["compare", "-s", "algorithm={name: fedavg}"], "-s algorithm: is a section; set one key of it"),
        (["compare", "-s", "training.lr=1", "-s", "training.lr=[1,2]"], "-s training.lr: is given twice"),
        (["compare", "--tune", "-s", "trainig.lr=[1,2]"], "trainig is unknown"),
        (
            ["compare", "--tune", "-a", "fedavg", "-s", "training.lr=1", "-s", "algorithm.weight_decay=0"],
            "--tune: every",
        ),
        (["tune", "--only", "lr", "-s", "training.lr=0.1"], "--only lr: training.lr is given"),
        (["tune", "-s", "seed=3"], "and seed 0"),
        (["ablate", "--only", "parts", "-s", "algorithm.alpha=0"], "-s algorithm.alpha: the study parts varies it"),
        (["compare", "-s", "training.lr=[1,0]"], "training.lr=0: input should be greater than 0"),
        (["compare", "nowhere.yaml", "--target", "-0.5"], "nowhere.yaml: no such file"),
        (["tune", "--only", "alhpa"], "--only='alhpa' is unknown (did you mean 'alpha'?)"),
        (["tune", "-s", "training.lr=[1,2]"], "tune takes one value per setting, no lists"),
        (["tune", "-s", "data.validation=0.2"], "tune sets data.validation itself, to 0.1"),
        (["tune", "-s", "algorithm.name=fedavg"], "from -a, and seed 0"),
        (["tune", "-a", "fedavg,fedavg"], "names one algorithm twice"),
        (["compare", "-a", "fedavg", "-s", "training.lr=[0.1,0.10]"], "two runs are the same"),
        (["compare", "-s", "checkpoint_every=[1,2]"], "two runs are the same"),
        (["compare", "--seeds", "5001"], "the study would have 10,002 runs; use at most 10,000"),
        (["compare", "--out", "afile"], "afile: is a file, not a folder"),
        (["compare", "--out", "arun"], "arun: holds a single run; choose another --out"),
        (["ablate", "-s", "algorithm.name=fedavg"], "ablate is for fedadamw only"),
        (["ablate", "-s", "training.lr=[1,2]"], "ablate takes one value per setting, no lists (training.lr)"),
        (["compare", "-a", "fedavg", "-s", "algorithm.rounds=1"], "of fedavg (did you mean 'training.rounds'?)"),
        (["compare", "-s", "training.clients_per_round=[5,101]"], "clients_per_round=101 is more than the 100"),
        (["compare", "-s", "partition.kind=nodes"], "it cannot be simulated"),
        (["compare", "-s", "trackers=[tensorbored]"], "did you mean 'tensorboard'"),
        (["compare", "-s", "model.name=[vit-nano,resnet18]", "-s", "model.depth=1"], "model.depth is a setting of"),
        (["compare", "-a", "fedavg,fedadam", "-s", "lora.aggregate=exact"], "this algorithm's server does not"),
        (["tune", "-s", "training.mean=krum", "-s", "training.byzantine=4"], "needs 11 clients a round, not 10"),
        (["tune", "-s", "data.resident=false"], "data.resident=false takes all samples: no data.validation"),
        (["ablate", "-s", "model.name=vit-macro"], "(did you mean 'vit-micro'?)"),
        (["ablate", "-s", "data.task=text"], "classifies images; data.task='text' takes a text model"),
        (["partition", "--out", "p.txt"], "--out p.txt: must end in .png or .svg"),
        (["ablate", "--only", "alfa"], "--only='alfa' is unknown (did you mean 'alpha'?)"),
    ],
)
def test_wrong_input_gives_one_error_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").touch()
    (tmp_path / "arun").mkdir()
    (tmp_path / "arun" / "config.yaml").touch()
    code, said = in_process(monkeypatch, capsys, *arguments)
    assert code == 2, said
    assert message in said
    assert said.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"afile", "arun"}


def test_a_plan_is_algorithms_times_lists_times_seeds(tmp_path):
    given = [("algorithm.betas", [[0.9, 0.99], [0.9, 0.999]]), ("algorithm.alpha", [0.0, 0.5])]
    given += [("partition.concentration", 0.1)]
    runs = plan("digits", ["fedadamw", "fedavg"], range(2), given, tmp_path)
    assert len(runs) == 2 * (2 * 2 + 1), "fedavg has neither betas nor alpha: one run a seed"
    assert len({run.name for run in runs}) == len(runs)
    assert all(run.experiment.partition.concentration == 0.1 for run in runs)
    labels = [dict(run.label) for run in runs if run.experiment.seed == 0]
    assert labels[0] == {"algorithm": "fedadamw", "algorithm.betas": "0.9 0.99", "algorithm.alpha": "0"}
    assert labels[-1] == {"algorithm": "fedavg"}
    one = plan("digits", ["fedadamw"], [0], [("algorithm.betas", [0.9, 0.99])], tmp_path)
    assert [run.experiment.algorithm["betas"] for run in one] == [(0.9, 0.99)]


def test_variants_that_differ_have_names_that_differ(tmp_path):
    given = [("training.lr", [1e-3, 1e-3 + 1e-9]), ("data.max_train", [100, 200]), ("data.max_test", 100)]
    runs = plan("digits", ["fedavg"], [0], given, tmp_path)
    assert len({results.variant_name(run.label) for run in runs}) == 4
    personal = [("personal", [{"parameters": ["a.*"]}, {"parameters": ["b.*"]}, {"finetune": 2}])]
    personal += [("partition.held_out", 0.2), ("training.client_evaluation", 1)]
    labels = [run.label["personal"] for run in plan("digits", ["fedavg"], [0], personal, tmp_path)]
    assert labels == ["parameters a.*", "parameters b.*", "finetune 2"]
    clash = {"algorithm": "a", "partition.kind": "x", "other.kind": "y"}
    assert results.variant_name(clash) == "a, partition.kind x, other.kind y"


def test_runs_share_the_cores_unless_threads_are_set(tmp_path):
    (tmp_path / "own.yaml").write_text("device: cpu")

    def threads(*given, jobs=None):
        (run,) = plan(str(tmp_path / "own.yaml"), ["fedavg"], [0], given, tmp_path, jobs)
        return run.experiment.threads

    assert threads() == 1
    assert threads(jobs=1) == count_cores()
    assert threads(("threads", 3), jobs=1) == 3


def test_a_recipes_settings_for_an_algorithm_apply_to_it_alone(tmp_path):
    assert load("digits").training.lr == 1e-3
    assert load("digits", ["algorithm.name=local-adamw"]).training.lr == 3e-3
    assert load("digits", ["algorithm.name=fedavg"]).training.lr == 0.1
    assert load("digits", ["algorithm.name=fedavg", "training.lr=0.3"]).training.lr == 0.3
    (tmp_path / "own.yaml").write_text("algorithms: {fedadamw: {alpha: 0.25}, fedavg: {lr: 0.2}}")
    assert load(str(tmp_path / "own.yaml")).algorithm["alpha"] == 0.25
    assert load(str(tmp_path / "own.yaml"), ["algorithm.alpha=0.75"]).algorithm["alpha"] == 0.75
    (tmp_path / "own.yaml").write_text("algorithm: {alpha: 0.25}")
    assert load(str(tmp_path / "own.yaml"), ["algorithm.name=fedadamw"]).algorithm["alpha"] == 0.25
    for text, message in (
        ("algorithms: 3", "must be a section"),
        ("algorithm: fedavg", "algorithm='fedavg': is a section; set algorithm.name"),
        ("algorithm: {name: [fedavg, fedcm]}", "must be a word"),
        ("algorithms: {fedavgg: {}}", "did you mean 'fedavg'"),
    ):
        (tmp_path / "own.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            load(str(tmp_path / "own.yaml"))


@pytest.mark.slow
def test_ablations_have_a_table_and_a_figure_each(tmp_path):
    out = tmp_path / "out"
    done = run_command("ablate", "digits", *TINY, "-s", "training.rounds=1", "--only", "parts,alpha", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("runs/*"))) == 8, "alpha 0.5 and 0 are in both and run once"
    assert {p.name for p in (out / "alpha").iterdir()} == {"results.json", "table.md", "curves.png", "report.html"}
    assert [s["variant"] for s in read(out / "parts")["summary"]][:2] == ["FedAdamW", "without shared v"]
    assert (out / "table.md").read_text().count("## ") == 2
    done = run_command("ablate", "digits", *TINY, "-s", "training.rounds=1", "--only", "beta2", "--out", str(out))
    assert (out / "table.md").read_text().count("## ") == 3, "those of an earlier call with the same settings are kept"
    done = run_command("ablate", "digits", *TINY, "-s", "training.rounds=2", "--only", "alpha", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert (out / "table.md").read_text().count("## ") == 1, "studies of other rounds do not stand beside it"
    (tmp_path / "own.yaml").write_text("algorithms: {fedadamw: {weight_decay: 0.0}}")
    done = run_command("ablate", str(tmp_path / "own.yaml"), "--only", "parts", "--out", str(tmp_path / "same"))
    assert done.returncode == 2
    assert "two runs are the same: part=FedAdamW and part=without weight decay, seed 0" in done.stderr
