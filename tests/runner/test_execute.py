"""A run as a user has it: what it leaves, killed and resumed, wrong input."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import yaml
from support.checkout import ROOT
from support.command import SHORT_RUN, run_command

import fedadamw
from fedadamw.checkpoint import read
from fedadamw.engine.simulate import Simulation
from fedadamw.runner import folder as run_folder
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder, settings_digest
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load, parse_override, parse_settings
from fedadamw.settings.recipes import list_recipes
from fedadamw.trained.export import export
from fedadamw.trained.load import open_run
from fedadamw.validation import InputError


def records(out: Path) -> list[dict]:
    """The metrics without the one number that no two runs share."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "wall_s"} for record in lines]


def assert_same_files(a: Path, b: Path) -> None:
    assert records(a) == records(b)
    for name in ("config.yaml", "manifest.json", "checkpoint/state.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())


def test_a_run_leaves_what_it_promises(finished_run):
    names = {p.name for p in finished_run.iterdir()}
    assert names == {"config.yaml", "manifest.json", "metrics.jsonl", "checkpoint", "curves.png", "report.html"}
    rows = records(finished_run)
    assert [row["round"] for row in rows] == list(range(1, 13))
    wanted = {
        "round",
        "lr",
        "train_loss",
        "test_loss",
        "test_metrics",
        "clients",
        "rejected",
        "up_bytes",
        "down_bytes",
    }
    assert set(rows[0]) == wanted
    manifest = json.loads((finished_run / "manifest.json").read_text())
    d, B = manifest["model"]["d"], manifest["model"]["B"]  # noqa: N806
    assert rows[0]["up_bytes"] == 10 * 4 * (d + B + 1)
    assert manifest["seed"] == 0
    assert manifest["data"]["train"]["samples"] == 1437
    assert manifest["versions"]["fedadamw"] == fedadamw.__version__
    assert (finished_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (finished_run / "report.html").read_text()
    assert "window.vegaEmbed" in page, "the charts' library is inside"
    template = (files("fedadamw.report") / "page.html").read_text()
    assert not re.search(r"\bsrc=|\bhref=|@import|https?:", template), "and nothing else is fetched: it opens offline"


def test_the_config_runs_the_same_again(finished_run, tmp_path):
    done = run_command("run", str(finished_run / "config.yaml"), "--out", str(tmp_path / "again"), "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert_same_files(finished_run, tmp_path / "again")


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "fedadamw", "run", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_rounds(out: Path, rounds: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        path = out / "metrics.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") >= rounds:
            return
        time.sleep(0.002)


def wait_for_line(process: subprocess.Popen, start: str) -> None:
    """Read what the process says until a line begins with `start`, or until it ends."""
    for line in process.stdout:
        if line.startswith(start):
            return


@pytest.mark.slow
def test_killed_at_ten_random_moments_and_resumed_gives_identical_files(finished_run, tmp_path):
    out = tmp_path / "run"
    rng = random.Random(11)
    done = kills = 0
    for _ in range(10):
        process = start("digits", *SHORT_RUN, "--out", str(out), "--resume")
        target = min(done + rng.randint(1, 3), 12)
        wait_for_line(process, f"round {target}/12" if done < 12 else "going on")
        time.sleep(rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        state = out / "checkpoint" / "state.safetensors"
        done = read(state, "checkpoint")[1]["round"] if state.exists() else 0
    assert kills == 10, "each was killed while it trained or reported, not after it had ended"
    last = run_command("run", "digits", *SHORT_RUN, "--out", str(out), "--resume")
    assert last.returncode == 0, last.stderr
    assert_same_files(finished_run, out)


def test_a_run_that_an_earlier_version_began_goes_on(tmp_path):
    """tests/runner/begun: two of four rounds, from before there were settings such as training.evaluate_batch."""
    out = RunFolder(shutil.copytree(ROOT / "tests" / "runner" / "begun", tmp_path / "begun"))
    before, experiment = out.metrics.read_bytes(), load(str(out.config))
    assert read(out.state, "checkpoint")[1]["settings"] == settings_digest(experiment), (
        "a new setting is in run_folder.ASIDE, or in LATER with the value at which all is as before"
    )
    out.check_settings(load(str(out.config), ["training.evaluate_batch=3"]))
    execute(load(str(out.config), ["training.evaluate_batch=3"]), out, resume=True, report=False)
    assert out.metrics.read_bytes().startswith(before)
    rows = out.records()
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert rows[2]["train_loss"] == pytest.approx(2.39569, rel=1e-3), "as that version came to without a stop"
    assert rows[3]["test_loss"] == pytest.approx(2.48696, rel=1e-3)


def test_what_no_run_may_start_with_today_can_be_exported_where_an_earlier_version_took_it(tmp_path):
    out = RunFolder(shutil.copytree(ROOT / "tests" / "runner" / "begun", tmp_path / "begun"))
    begun = out.config.read_text()
    for was, now in (("device: cpu", "device: mps"), ("eps: 1.0e-08", "eps: 0.0")):
        assert was in begun
        out.config.write_text(begun.replace(was, now))
        export(open_run(out.path), tmp_path / now)
        assert (tmp_path / now / "model.safetensors").is_file()
        with pytest.raises(InputError, match="is not a device to train on|eps=0.0 must be at least"):
            execute(load(str(out.config)), out, resume=True, report=False)
    out.config.write_text(begun.replace("device: cpu", "device: mps"))
    experiment = load(str(out.config), ["device=cpu"])
    out.check_settings(experiment)
    execute(experiment, out, resume=True, report=False)
    assert len(out.records()) == 4


def test_only_settings_that_decide_numbers_are_in_the_digest(monkeypatch):
    def digest(*settings):
        return settings_digest(load("digits", settings))

    assert digest() == digest("training.evaluate_batch=3", "training.micro_batch=2", "data.resident=false", "stack=2")
    assert digest() != digest("training.lr=0.1")
    monkeypatch.setitem(run_folder.LATER, "data.flip", False)  # as a setting that came later
    assert digest() == digest("data.flip=false")
    assert digest() != digest("data.flip=true")
    monkeypatch.setitem(run_folder.LATER, "lora.r", 16)
    assert digest() != digest("lora.r=16"), "a section that is not there is none with its usual values"
    assert digest("lora.r=16") == digest("lora.alpha=32")


DIES_AT_A_RENAME = """
import os, signal, sys
out, n, when, *arguments = sys.argv[1:]
rename, seen = os.replace, 0
def dying(source, target):
    global seen
    ours = str(target).startswith(out)
    seen += ours
    if ours and seen == int(n) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
    if ours and seen == int(n):
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = dying
sys.argv = ["fedadamw", *arguments]
from fedadamw.cli import main
main()
"""


@pytest.mark.slow
def test_killed_in_the_middle_of_every_kind_of_write(finished_run, tmp_path):
    """The renames of a fresh run are of manifest, metrics, settings, checkpoints; of a resumed one, metrics first."""
    out = str(tmp_path / "run")
    moments = [(1, "after"), (2, "after"), (3, "before"), (3, "after"), (2, "before"), (2, "after")]
    for n, when in moments:
        arguments = [out, str(n), when, "run", "digits", *SHORT_RUN, "--out", out, "--resume", "--quiet"]
        died = subprocess.run([sys.executable, "-c", DIES_AT_A_RENAME, *arguments], capture_output=True, text=True)
        assert died.returncode == -signal.SIGKILL, died.stderr
    last = run_command("run", "digits", *SHORT_RUN, "--out", out, "--resume")
    assert last.returncode == 0, last.stderr
    leftover = Path(out) / "checkpoint" / "state.safetensors.new"
    assert not leftover.exists()
    assert_same_files(finished_run, Path(out))


@pytest.mark.slow
def test_a_start_that_was_killed_half_way_can_start_again(tmp_path):
    out = tmp_path / "run"
    arguments = [str(out), "3", "before", "run", "digits", *SHORT_RUN, "--out", str(out)]
    died = subprocess.run([sys.executable, "-c", DIES_AT_A_RENAME, *arguments], capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL
    done = run_command("run", "digits", *SHORT_RUN, "-s", "training.rounds=1", "--out", str(out), "--quiet")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_never_run_in_one_folder(tmp_path):
    out = tmp_path / "run"
    first = start("digits", *SHORT_RUN, "-s", "training.rounds=500", "--out", str(out))
    wait_for_line(first, "round 1/")
    second = run_command("run", "--resume", "--out", str(out))
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert "another process is running in this folder" in second.stderr


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_says_how_to_go_on(finished_run, tmp_path, sent, code):
    out = tmp_path / "run"
    process = start("digits", *SHORT_RUN, "--out", str(out))
    wait_for_rounds(out, 4, process)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"resume with: fedadamw run --resume --out {out}" in stderr
    assert "Traceback" not in stderr
    _, facts = read(out / "checkpoint" / "state.safetensors", "checkpoint")
    assert facts["round"] >= 3  # the round whose record was just written may still count as under way
    done = run_command("run", "--resume", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert f"going on after round {facts['round']} of 12" in done.stdout
    assert_same_files(finished_run, out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-s", "training.lrr=1"], "training.lrr is unknown (did you mean 'lr'?); use one of rounds, "),
        (["-s", "trainin.lr=1"], "trainin is unknown (did you mean 'training'?)"),
        (["-s", "rounds=3"], "rounds is unknown (did you mean 'training.rounds'?); use one of seed, device"),
        (["-s", "lr=1"], "lr is unknown (did you mean 'training.lr'?)"),
        (["-s", "alpha=1"], "alpha is unknown (did you mean 'algorithm.alpha' or 'lora.alpha'?)"),
        (["-s", "beta1=1"], "beta1 is unknown (did you mean 'algorithm.betas'?)"),
        (["-s", "training.clients=9"], "training.clients is unknown (did you mean 'partition.clients'?)"),
        (["-s", "model.lora={r: 4}"], "model.lora is unknown (did you mean 'lora'?)"),
        (["-s", "algorithm.lr=1"], "algorithm.lr is unknown (did you mean 'training.lr'?); fedadamw has betas"),
        (["-s", "algorithm.mu=1"], "alpha, share; mu is a setting of fedprox"),
        (["sst2"], "recipe 'sst2' is unknown (did you mean 'paper/glue-sst2'?)"),
        (["own.yaml"], "Rounds is unknown (did you mean 'training.rounds'?)"),
        (["-s", "training.lr=-1"], "training.lr=-1: input should be greater than 0"),
        (["-s", "training.lr=fast"], "training.lr='fast': input should be a valid number"),
        (["-s", "training.lr=["], "-s ...='[': not YAML: while parsing"),
        (["-s", "training.schedule=cosin"], "training.schedule='cosin' (did you mean 'cosine'?)"),
        (["-s", "algorithm.name=5"], "algorithm.name=5 must be a word"),
        (["-s", "data.validation=1e-9"], "holds out 0 of 1,437 samples"),
        (["-s", "algorithm.eps=0"], "algorithm: eps=0.0 must be at least 1.18e-38"),
        (["-s", "device=meta"], "device='meta' is not a device to train on; use one of auto, cpu, cuda, cuda:0"),
        (["-s", "device=mps"], "device='mps' is not a device to train on"),
        (["-s", "device=cuda:-1"], "device='cuda:-1' is not a device to train on"),
        (["-s", "model.norm=batch"], "model.norm is a setting of resnet-nano, resnet18, not of"),
        (["-s", "partition.kind=column", "-s", "partition.column=who"], "digits have no columns"),
        (["--out", __file__], "is a file, not a folder"),
        (["-s", "training.lr"], "give key.path=value"),
        (["-s", "seed.x=1"], "seed is a setting, not a section"),
        (["-s", "algorithm.share=vv"], "share='vv' is unknown"),
        (["-s", "algorithm.name=fedavgg"], "(did you mean 'fedavg'?)"),
        (["-s", "model.name=vit-macro"], "(did you mean 'vit-micro'?)"),
        (["-s", "model.name=./nowhere"], "model.name='./nowhere': no such folder"),
        (["-s", "model.blocks=row"], "use one of paper, coarse, tensor, coordinate"),
        (["-s", "data.source=./nowhere"], "data.source='./nowhere': no such folder"),
        (["-s", "partition.kind=odd"], "partition.kind='odd'"),
        (["-s", "partition.clients=5000"], "partition.clients=5,000 is more than the 1,437 training samples"),
        (["-s", "partition.kind=column"], "needs partition.column"),
        (["-s", "training.clients_per_round=101"], "clients_per_round=101 is more than the 100 clients"),
        (["-s", "trackers=[tensorbored]"], "did you mean 'tensorboard'"),
        (["-s", "device=cuda:99"], "device='cuda:99': torch finds no such GPU here; available: cpu"),
        (["--resume"], "--resume needs --out"),
        (["--resume", "--out", "nowhere"], "nowhere holds no run to resume"),
        (["digitz"], "recipe 'digitz' is unknown (did you mean 'digits'?)"),
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--resum"], "No such option"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_left(arguments, message, tmp_path, monkeypatch, run_main):
    monkeypatch.chdir(tmp_path)
    if "own.yaml" in arguments:
        (tmp_path.parent / "own.yaml").write_text("Rounds: 3\n")
        arguments = ["../own.yaml"]
    done = run_main("run", *arguments, "--ranks", "1")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    if "No such option" not in message:
        assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_settings(tmp_path):
    (tmp_path / "own.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file"):
        load(str(tmp_path / "own.yaml"))
    for content, message in (("a: [", "not YAML"), ("just words", "holds no settings"), ("lr: 1", "lr is unknown")):
        (tmp_path / "own.yaml").write_text(content)
        with pytest.raises(ValueError, match=message):
            load(str(tmp_path / "own.yaml"))


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            LAUGHS + "model: {name: *i}\n",
            "is too large for settings: more than 100,000 characters, with aliases expanded",
        ),
        (f"seed: &a {'x' * 90_000}\nmodel: [*a, *a]\n", "is too large for settings"),
        ("a: 1\n" * 200_000, "is too large for settings"),
        ("seed: [" + "1," * 49_000 + "]", "is too large for settings"),
        ("data: " + "[" * 5_000 + "]" * 5_000, "is too deep for settings: more than 20 sections or lists"),
        ("data: &a [*a]", "*a is inside the value that it refers to"),
        ("data: *a", "not YAML: found undefined alias"),
        ("seed: 2024-13-45", "not YAML: month must be in 1..12"),
        ("seed: !!int ''", "not YAML: "),
        (f"seed: {'9' * 5_000}", "not YAML: Exceeds the limit"),
        (f"seed: 0x{'f' * 9_000}", "contains an integer beyond 2**63"),
        (f"algorithm: [0, {{a: 0x{'f' * 9_000}}}]", "contains an integer beyond 2**63"),
        (f"? 0x{'f' * 9_000}\n: 1", "contains an integer beyond 2**63"),
        (f"seed: 1{':01' * 200}.5", "not YAML: "),
        ("algorithms: {1: {lr: 1}}", "algorithms=1 is unknown; use one of"),
        (f"seed: {'x' * 50_000}", f"seed='{'x' * 199}...: input should be a valid integer"),
        (f"? {'x' * 50_000}\n: 1", "xxx..."),
    ],
)
def test_yaml_that_grows_is_refused_in_one_short_line_at_once(content, message, tmp_path, run_main):
    (tmp_path / "own.yaml").write_text(content)
    start = time.perf_counter()
    done = run_main("run", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "out"))
    assert time.perf_counter() - start < 3, "the first also loads libraries"
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    assert len(done.stderr) < 5_000
    if "\n" not in content:
        value = content.partition(": ")[2]
        assert run_main("run", "-s", f"seed={value}", "--out", str(tmp_path / "out")).returncode == 2


def test_aliases_of_a_section_are_settings_still(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "training: {steps: 1}\nalgorithms:\n  fedavg: &own {lr: 0.5}\n  fedprox: {<<: *own}\n"
    )
    assert load(str(tmp_path / "own.yaml"), ["algorithm=fedprox"]).training.lr == 0.5


def test_a_diverging_run_says_what_to_try(tmp_path):
    settings = ("-s", "algorithm.name=fedavg", "-s", "training.lr=1e30", "-s", "training.clip=null")
    done = run_command("run", "digits", *SHORT_RUN, *settings, "--out", str(tmp_path / "run"))
    assert done.returncode == 1
    assert "clients sent numbers that are not finite; try a smaller training.lr" in done.stderr
    assert (tmp_path / "run" / "checkpoint" / "state.safetensors").exists(), "the last whole round is kept"


@pytest.mark.parametrize("saves", [True, False])
@pytest.mark.filterwarnings("always:round 2 is not in the checkpoint")
def test_full_memory_is_one_line_that_says_how_to_resume_even_if_saving_fails(saves, tmp_path, run_main, monkeypatch):
    step, out, second = Simulation.step, tmp_path / "run", "CUDA error: an illegal memory access was encountered"

    def full(simulation):
        if simulation.state.round == 2:
            if not saves:
                monkeypatch.setattr(simulation, "tensors", lost)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(simulation)

    def lost(state):
        raise RuntimeError(second)

    monkeypatch.setattr(Simulation, "step", full)
    done = run_main("run", "digits", *SHORT_RUN, "--out", str(out), "--ranks", "1", "-q")
    assert done.returncode == 1
    *before, last = done.stderr.splitlines()
    assert last.startswith(
        "error: memory is full (CUDA out of memory. Tried to allocate 2.00 GiB.); a smaller training.micro_batch"
    )
    assert last.endswith(f"needs less; resume with: fedadamw run --resume --out {out}")
    assert before == ([] if saves else [f"warning: round 2 is not in the checkpoint: {second}"])
    if saves:
        assert read(out / "checkpoint" / "state.safetensors", "checkpoint")[1]["round"] == 2


def test_every_recipe_is_valid_and_survives_its_own_yaml():
    for name in list_recipes():
        experiment = load(name)
        assert parse_settings(yaml.safe_load(experiment.to_yaml())) == experiment
    assert parse_settings({}) == Experiment()


def test_overrides_are_yaml_and_another_algorithm_starts_from_its_own_defaults():
    experiment = load("digits", ["algorithm.name=fedavg", "training.epochs=2", "training.lr=1e-3"])
    assert experiment.algorithm == {"name": "fedavg", "weight_decay": 1e-3}
    assert (experiment.training.steps, experiment.training.epochs) == (None, 2)
    assert experiment.training.lr == 1e-3


def test_a_token_keeps_its_brackets(tmp_path):
    texts = ["data.task=text", "data.source=./reviews"]
    assert load("digits", [*texts, "model.pad_token=[PAD]"]).model.pad_token == "[PAD]"
    assert load("digits", [*texts, "model.pad_token=</s>"]).model.pad_token == "</s>"
    assert parse_override("model.pad_token=[PAD, </s>]") == ("model.pad_token", ["PAD", "</s>"]), "two to compare"
    assert parse_override("model.name=[vit-nano]") == ("model.name", ["vit-nano"])
    (tmp_path / "own.yaml").write_text("data: {task: text, source: ./reviews}\nmodel: {pad_token: [PAD]}\n")
    with pytest.raises(ValueError, match=r"is a list of one word; in YAML the word with its brackets is \"\[PAD\]\""):
        load(str(tmp_path / "own.yaml"))


@pytest.mark.slow
def test_tensorboard_gets_the_rounds(tmp_path):
    pytest.importorskip("tensorboard")
    out = tmp_path / "run"
    settings = ("-s", "trackers=[tensorboard]", "-s", "training.rounds=2")
    done = run_command("run", "digits", *SHORT_RUN, *settings, "--out", str(out), "--quiet")
    assert done.returncode == 0, done.stderr
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = next(out.rglob("events.out.tfevents*")).parent
    events = EventAccumulator(str(folder))
    events.Reload()
    written = [event.value for event in events.Scalars("test_metrics.accuracy")]
    expected = [row["test_metrics"]["accuracy"] for row in records(out) if row["test_metrics"] is not None]
    assert len(expected) == 1, "the recipe evaluates every other round"
    assert written == pytest.approx(expected)
