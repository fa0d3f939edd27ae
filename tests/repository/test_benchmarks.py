"""Every benchmark starts, and only `--record` writes the committed records."""

import importlib
import json
import sys

import pytest
from support.checkout import ROOT

from benchmarks.common import records
from benchmarks.measure import aggregate

BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks" / "measure").glob("*.py"))
MEASUREMENT = {"s": 1.0, "extra_mb": 2, "sum": 3.0}


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """Where records go: the scratch folder and the committed one, both empty."""
    monkeypatch.setattr(records, "SCRATCH", tmp_path / "scratch")
    monkeypatch.setattr(records, "COMMITTED", tmp_path / "committed")
    return tmp_path / "scratch", tmp_path / "committed"


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_shows_its_help_with_the_shared_options(name, monkeypatch, capsys):
    if name.startswith("federation"):
        pytest.importorskip("flwr", reason="Flower needs Python 3.11")
    module = importlib.import_module(f"benchmarks.measure.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert {"--device", "--record"} <= set(capsys.readouterr().out.replace("[", " ").replace("]", " ").split())


@pytest.mark.parametrize("options", [[], ["--record"]], ids=["plain", "record"])
def test_only_record_writes_the_committed_record(options, folders, monkeypatch):
    monkeypatch.setattr(aggregate, "run_again", lambda *_arguments: MEASUREMENT)
    monkeypatch.setattr(sys, "argv", ["aggregate", *options])
    aggregate.main()
    scratch, committed = folders
    written, untouched = (committed, scratch) if options else (scratch, committed)
    (path,) = written.iterdir()
    assert json.loads(path.read_text())["ways"] == dict.fromkeys(aggregate.WAYS, MEASUREMENT)
    assert not untouched.exists()


def test_no_benchmark_writes_anywhere_else():
    for name in BENCHMARKS:
        text = (ROOT / "benchmarks" / "measure" / f"{name}.py").read_text()
        assert text.count("records.write(") == 1, name
        assert "record=" in text, name


def test_the_newest_record_of_a_device_is_read(folders):
    _, committed = folders
    committed.mkdir()
    for name in ("step_cpu_202610", "step_cpu_202611", "step_cuda_202612", "stepping_cpu_202612"):
        (committed / f"{name}.json").write_text(json.dumps({"name": name}))
    assert records.read_newest("step", "cpu") == {"name": "step_cpu_202611"}
    assert records.read_newest("memory", "cpu") is None


def test_a_scratch_folder_is_ignored_by_git():
    assert records.SCRATCH.relative_to(ROOT).parts[0] + "/" in (ROOT / ".gitignore").read_text().split()


@pytest.mark.parametrize("name", ["asynchronous", "personal", "private_curves"])
def test_an_unknown_part_is_one_line(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--only", "digits,nothing"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.measure.{name}").main()
    assert ended.value.code == 2
    assert "argument --only: 'nothing' is unknown; use some of digits, " in capsys.readouterr().err.splitlines()[-1]
