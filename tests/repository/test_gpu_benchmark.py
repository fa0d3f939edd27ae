"""benchmarks/measure/gpu runs everything on a CPU in small, on a machine that has little, and keeps what it found."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from support.bare_machine import make_bare_machine
from support.checkout import ROOT
from support.image_sets import images

from benchmarks.measure.gpu import PARTS_FOLDER, bench, cifar, pack, parts, pixels, worker
from benchmarks.measure.gpu import __main__ as command
from benchmarks.measure.gpu.bench import Bench, DeviceLostError, SkippedError, WrongError
from benchmarks.measure.gpu.problems import paper_federation
from benchmarks.measure.gpu.record import Record
from benchmarks.measure.gpu.static_round import LoopRound, StackedRound
from fedadamw.engine.client import Broadcast, Shard
from fedadamw.settings.lora import LoraSettings
from fedadamw.settings.training import TrainingSettings

CPU = torch.device("cpu")
SMALL = [sys.executable, "-m", "benchmarks.measure.gpu", "--small", "--device", "cpu"]


@pytest.fixture(autouse=True)
def keep_garbage(monkeypatch):
    """After each measurement memory is released, which here only takes time."""
    monkeypatch.setattr(bench, "release_memory", lambda: None)


def record_of(folder: Path, *names: str) -> Record:
    record = Record(
        folder / "record.json", {"budget_s": 60.0, "small": True, "parts": {n: {"about": n} for n in names}}
    )
    record.save()
    return record


def bench_of(record: Record, part: str, seconds: float = 60.0) -> Bench:
    record.begin(part)
    return Bench(record, part, CPU, True, time.time() + seconds)


def test_what_fails_is_recorded_with_its_reason_and_the_next_is_measured(tmp_path):
    one = bench_of(record_of(tmp_path, "step"), "step")

    def fails() -> dict:
        raise ValueError("no such kernel\nand more lines")

    def differs() -> dict:
        raise WrongError("differs by 2", {"largest": 2.0})

    def skips() -> dict:
        raise SkippedError("needs bitsandbytes")

    assert [one.measure(name, work) for name, work in (("a", fails), ("b", differs), ("c", skips))] == [None] * 3

    def warns() -> dict:
        for _ in range(2):
            warnings.warn("local steps are not compiled", stacklevel=1)
        return {"s": 1.0}

    assert one.measure("d", warns)["s"] == 1.0
    rows = Record.read(one.record.path).parts["step"]["measured"]
    assert rows["a"]["failed"] == "ValueError: no such kernel"
    assert "raise ValueError" in rows["a"]["traceback"][-1]
    assert (rows["b"]["failed"], rows["b"]["largest"]) == ("WrongError: differs by 2", 2.0)
    assert rows["c"]["skipped"] == "needs bitsandbytes"
    assert rows["d"]["warnings"] == ["local steps are not compiled"]
    assert one.verdict() == ("failed", "failed: a; b")


def test_measurements_are_left_out_when_the_time_is_up(tmp_path):
    late = bench_of(record_of(tmp_path, "step"), "step", seconds=-1.0)
    assert late.measure("a", lambda: pytest.fail("was measured")) is None
    assert "left_out" in Record.read(late.record.path).parts["step"]["measured"]["a"]
    assert late.verdict() == ("cut off", "there was no time for 1 of 1 measurements")


def test_an_error_that_takes_the_device_along_ends_the_process(tmp_path):
    def broken(_bench: Bench) -> None:
        _bench.measure("a", lost)

    def lost() -> dict:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    record = record_of(tmp_path, "step", "round")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.measure.gpu.local_step.measure", broken)
        with pytest.raises(SystemExit):
            worker.run_part(record, "step", CPU, time.time() + 60)
    known = Record.read(record.path)
    assert known.parts["step"]["status"] == "failed"
    assert "illegal memory access" in known.parts["step"]["why"]
    assert known.waiting() == ["round"]
    with pytest.raises(DeviceLostError):
        bench_of(record, "round").measure("a", lost)
    assert not bench.is_lost(RuntimeError("CUDA error: out of memory"))


def test_a_part_that_raises_or_has_no_time_does_not_stop_the_others(tmp_path, monkeypatch):
    def broken(_bench: Bench) -> None:
        raise OSError("disk gone")

    record = record_of(tmp_path, "step", "round", "memory")
    monkeypatch.setattr("benchmarks.measure.gpu.local_step.measure", broken)
    worker.run_part(record, "step", CPU, time.time() + 60)
    worker.run_part(record, "round", CPU, time.time() + 0.5)
    monkeypatch.setattr("benchmarks.measure.gpu.llama.measure", lambda one: one.measure("a", lambda: {"s": 1.0}))
    worker.run_part(record, "memory", CPU, time.time() + 60)
    known = Record.read(record.path).parts
    assert (known["step"]["status"], known["step"]["why"]) == ("failed", "OSError: disk gone")
    assert known["step"]["traceback"][-1] == "OSError: disk gone"
    assert known["round"]["status"] == "left out"
    assert "of the budget were left" in known["round"]["why"]
    assert known["memory"]["status"] == "done"
    assert known["memory"]["measured"]["a"]["s"] == 1.0


def test_parts_share_a_budget_below_nine_minutes():
    assert sum(part.share for part in parts.PARTS.values()) == pytest.approx(1.0)
    assert parts.BUDGET_S + parts.LATE_S < 9 * 60 - 15, "and the start of the processes"
    assert {part.module for part in parts.PARTS.values()} <= {path.stem for path in PARTS_FOLDER.glob("*.py")}


@pytest.mark.parametrize(("options", "said"), [(["--only", "steps"], "no such part"), ([], "finds no GPU")])
def test_wrong_options_are_refused_in_one_line(options, said, monkeypatch, capsys):
    if not options and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    monkeypatch.setattr(sys, "argv", ["gpu", *options])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("clients", [1, 2])
def test_a_static_round_takes_the_engines_steps(clients):
    sim = paper_federation(CPU, clients=2, steps=3, batch=3, precision="float32", stack=clients, small=True)
    static = LoopRound(sim) if clients == 1 else StackedRound(sim, clients)
    begun = static.begun.y.clone()
    models = static.run(static.recorded())
    answers = sim.clients.engine.train(shards_of(sim)[:clients], broadcast_of(sim))
    expected = [answer.up.delta + begun for _, answer in answers]
    torch.testing.assert_close(models, torch.stack(expected), rtol=0, atol=1e-6)
    assert bool((models != begun).any())


def shards_of(sim):
    return [Shard(i, samples, None) for i, samples in enumerate(sim.clients.partition)]


def broadcast_of(sim):
    return Broadcast(0, sim.algorithm.broadcast(sim.state.server), sim.state.statistics, sim.state.base)


def test_packed_images_are_read_bit_for_bit(tmp_path):
    train, test = images(60), images(20, seed=1)
    pixels.write(tmp_path / "pixels", train, test)
    for ours, theirs in zip(pixels.read(tmp_path / "pixels"), (train, test), strict=True):
        assert np.array_equal(ours.pixels, theirs.pixels)
        assert np.array_equal(ours.labels, theirs.labels)


def test_the_stand_in_for_pydantic_gives_the_same_settings(monkeypatch):
    spec = spec_from_file_location("pydantic", PARTS_FOLDER / "without_pydantic" / "pydantic" / "__init__.py")
    stand_in = module_from_spec(spec)
    spec.loader.exec_module(stand_in)
    for kind, given in ((TrainingSettings, {"steps": 2, "lr": 0.1}), (LoraSettings, {"target_modules": ("q", "k")})):
        own = rebuilt(kind, stand_in)
        expected = kind(**given).model_dump()
        assert {name: getattr(own(**given), name) for name in expected} == expected
        with pytest.raises(TypeError, match="has no"):
            own(nonsense=1)
    both = rebuilt(TrainingSettings, stand_in)
    assert both(steps=2, rounds=10).lr_at(5) == TrainingSettings(steps=2, rounds=10).lr_at(5)
    with pytest.raises(ValueError, match="one of steps and epochs"):
        both(steps=2, epochs=2)


def rebuilt(kind, stand_in):
    """The settings' class, made again with the stand-in in pydantic's place."""
    fields_module = type(sys)("pydantic.fields")
    fields_module.FieldInfo = stand_in.FieldInfo
    names = ("fedadamw.settings.section", kind.__module__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pydantic", stand_in)
        patch.setitem(sys.modules, "pydantic.fields", fields_module)
        for name in names:
            patch.delitem(sys.modules, name)
        module = __import__(kind.__module__, fromlist=["x"])
        return getattr(module, kind.__name__)


@pytest.fixture
def started(tmp_path):
    """started(options, until): the benchmark, once its record satisfies `until`; ended at the end of the test."""
    processes = []

    def start(*options: str, until) -> tuple[subprocess.Popen, Path]:
        path = tmp_path / "record.json"
        process = subprocess.Popen([*SMALL, "--out", str(path), *options], cwd=ROOT, stdout=subprocess.DEVNULL)
        processes.append(process)
        for _ in range(1200):
            if path.exists() and until(Record.read(path)):
                return process, path
            assert process.poll() is None
            time.sleep(0.1)
        raise AssertionError("the benchmark did not begin")

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()


def has_measured(part):
    return lambda record: len(record.parts[part].get("measured", {})) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_leaves_what_it_found(started, number):
    process, path = started("--only", "correctness,step", until=has_measured("correctness"))
    process.send_signal(number)
    assert process.wait(60) == 1
    record = json.loads(path.read_text())
    assert record["status"] == "incomplete"
    assert record["wall_s"] > 0
    assert record["parts"]["correctness"]["status"] == "cut off"
    assert record["parts"]["correctness"]["why"] == f"stopped by {number.name}"
    assert record["parts"]["step"]["status"] == "left out"
    first = next(iter(record["parts"]["correctness"]["measured"].values()))
    assert first["largest"] <= first["bound"]


@pytest.mark.slow
def test_a_process_that_dies_or_hangs_costs_its_part_only(started):
    process, path = started("--only", "correctness,memory", until=has_measured("correctness"))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    assert process.wait(120) == 1
    known = Record.read(path).parts
    assert (known["correctness"]["status"], known["memory"]["status"]) == ("failed", "done")
    assert known["correctness"]["why"] == "its process ended with exit status -9"


@pytest.mark.slow
def test_the_packed_folder_runs_on_a_machine_with_little(tmp_path):
    size = pack.pack(tmp_path / "folder", None)
    assert size < 4
    python = make_bare_machine(tmp_path / "bare")
    options = ["-m", "benchmarks.measure.gpu", "--small", "--device", "cpu", "--out", str(tmp_path / "record.json")]
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([python, *options], cwd=tmp_path / "folder", env=environment, capture_output=True, text=True)
    record = json.loads((tmp_path / "record.json").read_text())
    failed = {n: p["measured"] for n, p in record["parts"].items() if p["status"] != "done"}
    assert failed == {}, done.stderr[-2000:]
    assert done.returncode == 0
    assert list(record["parts"]) == list(parts.PARTS)
    assert record["status"] == "complete"
    assert {"commit", "date", "driver", "versions", "device", "torch", "budget_s"} <= set(record)
    assert record["versions"]["pydantic"] is None
    check_measured({name: part["measured"] for name, part in record["parts"].items()})


def check_measured(measured):
    assert all(row["largest"] <= row["bound"] for name, row in measured["correctness"].items() if "float64" in name)
    assert measured["step"]["alone"]["steps"]["torch AdamW, fused"]["of_fused"] == 1.0
    assert measured["round"]["bf16"]["tflop_s"] > 0
    assert measured["round"]["float32"]["of_measured_peak"] > 0
    assert measured["engines"]["float32, graph of all clients' step"]["equal"] is True
    assert measured["engines"]["two processes"]["bf16"]["client_step_s"] > 0
    assert measured["memory"]["tiny, bf16"]["known_gb"] > 0
    longest = measured["trace"]["kernels, bf16, stacked"]["longest"]
    assert len(longest) == 10
    assert longest[0]["share"] >= longest[-1]["share"] > 0
    (row,) = measured["cifar"].values()
    assert row["rounds"] == row["of_rounds"] == 2


def test_rounds_that_ran_tell_what_all_would_take():
    found = cifar.progress([9.0, 1.0, 1.0], [0.1, 0.3, 0.2], 300)
    assert (found["all_rounds_s"], found["within_goal"], found["best_accuracy"]) == (308.0, False, 0.3)


def test_the_page_shows_a_record_and_says_that_there_is_none():
    from benchmarks.pages import gpu

    without = gpu.section(None)
    assert "no record of a GPU yet" in without
    assert "python -m benchmarks.measure.gpu.pack" in without
    part = {"status": "done", "seconds": 1.0}
    kernels = [{"name": "gemm", "share": 0.5, "ms": 1.0, "calls": 3}]
    record = {
        **dict.fromkeys(("device", "driver", "torch", "date", "commit"), "x"),
        "parts": {
            "step": {**part, "d": 5, "measured": {"alone": {"steps": {"fused": {"ms": 1.0, "of_fused": 1.0}}}}},
            "round": {
                **part,
                "measured": {"bf16": {"round_s": 0.4, "goal_s": 0.2, "tflop_s": 9.0}, "a": {"failed": "x"}},
            },
            "engines": {
                **part,
                "status": "failed",
                "why": "failed: b",
                "measured": {
                    "groups of 2": {"client_step_s": 0.001},
                    "two processes": {"bf16": {"client_step_s": 0.002}},
                    "graph": {"graph_of_plain": 0.5, "graph_client_step_s": 0.003},
                    "b": {"failed": "no"},
                },
            },
            "memory": {**part, "measured": {"1B": {"skipped": "no"}}},
            "trace": {**part, "measured": {"kernels, bf16, stacked": {"longest": kernels}}},
            "cifar": {
                **part,
                "measured": {
                    "300 rounds": cifar.progress([1.0, 1.0], [0.1, 0.2], 300) | {"images": "CIFAR-10", "goal_s": 180.0}
                },
            },
        },
    }
    page = gpu.section(record)
    for shown in (
        "| alone |",
        "0.400 s",
        "two processes, bf16 | 2.000 ms",
        "| graph | 3.000 ms | 0.50 |",
        "`gemm`",
        "300 s",
    ):
        assert shown in page, shown
    assert "no record" not in page
    assert "failed: b" in page
