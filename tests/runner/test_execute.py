"""What a run writes, and how it reports a failure."""

import json
import re
from importlib.resources import files

import pytest
import torch
from support.command import SHORT_RUN, run_command
from support.run_folders import assert_same_files, read_records, start_run, wait_for_line

import fedadamw
from fedadamw.checkpoint import read
from fedadamw.engine.simulate import Simulation


def test_a_finished_run_writes_all_its_files(finished_run):
    names = {p.name for p in finished_run.iterdir()}
    results = {"metrics.jsonl", "clients.jsonl", "checkpoint", "curves.png", "report.html", "partition.json"}
    assert names == {"config.yaml", "manifest.json", *results}
    rows = read_records(finished_run)
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


def test_running_the_saved_config_gives_identical_files(finished_run, tmp_path):
    done = run_command("run", str(finished_run / "config.yaml"), "--out", str(tmp_path / "again"), "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert_same_files(finished_run, tmp_path / "again")


@pytest.mark.slow
def test_a_second_process_is_refused_in_the_same_folder(tmp_path):
    out = tmp_path / "run"
    first = start_run("digits", *SHORT_RUN, "-s", "training.rounds=500", "--out", str(out))
    wait_for_line(first, "round 1/")
    second = run_command("run", "--resume", "--out", str(out))
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert "another process is running in this folder" in second.stderr


def test_a_diverging_run_suggests_a_smaller_lr(tmp_path, run_main):
    settings = ("-s", "algorithm.name=fedavg", "-s", "training.lr=1e30", "-s", "training.clip=null")
    done = run_main("run", "digits", *SHORT_RUN, *settings, "--out", str(tmp_path / "run"))
    assert done.returncode == 1
    assert "clients sent numbers that are not finite; try a smaller training.lr" in done.stderr
    assert (tmp_path / "run" / "checkpoint" / "state.safetensors").exists(), "the last whole round is kept"


@pytest.mark.parametrize("saves", [True, False])
@pytest.mark.filterwarnings("always:round 2 is not in the checkpoint")
def test_out_of_memory_is_one_line_that_says_how_to_resume_even_if_saving_fails(saves, tmp_path, run_main, monkeypatch):
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
        "error: memory is full (CUDA out of memory. Tried to allocate 2.00 GiB.); training.gradient_checkpointing="
        "true, or a smaller training.micro_batch"
    )
    assert last.endswith(f"needs less; resume with: fedadamw run --resume --out {out}")
    assert before == ([] if saves else [f"warning: round 2 is not in the checkpoint: {second}"])
    if saves:
        assert read(out / "checkpoint" / "state.safetensors", "checkpoint")[1]["round"] == 2


@pytest.mark.slow
def test_tensorboard_receives_every_evaluated_round(tmp_path):
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
    expected = [row["test_metrics"]["accuracy"] for row in read_records(out) if row["test_metrics"] is not None]
    assert len(expected) == 1, "the recipe evaluates every other round"
    assert written == pytest.approx(expected)
