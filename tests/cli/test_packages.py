"""Commands with algorithms of other packages."""

import json
import os
import subprocess
import sys

import pytest
from support.packages import install

from fedadamw.algorithms import registry
from fedadamw.algorithms.fedavg import FedAvg
from fedadamw.cli.complete import complete_algorithms
from fedadamw.runner.execute import Interrupted, execute
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.manifest import warn_of_other_package
from fedadamw.settings.load import load

FEW = [
    "algorithm=fedavgx",
    "training.rounds=2",
    "training.steps=1",
    "training.clients_per_round=1",
    "training.evaluate_every=2",
    "threads=1",
]
TORCH_FREE = """
import sys
from fedadamw.cli import main
sys.argv = ["fedadamw", "list"]
try:
    main()
finally:
    print({"torch", "numpy", "broken"} & set(sys.modules))
"""


def test_list_names_packages_without_importing_them(tmp_path):
    install(tmp_path, "broken", {"aardvark": "broken:A", "twice": "broken:B"}, "raise RuntimeError", "2.0")
    install(tmp_path, "other", {"twice": "other:B"})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", TORCH_FREE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    algorithms = done.stdout.partition("\nalgorithms\n")[2].partition("\nmodels\n")[0].splitlines()
    assert [" ".join(line.split()) for line in algorithms[len(registry.BUILT_IN) :]] == [
        "aardvark of package broken 2.0",
        "twice of package broken 2.0, other 0.1",
    ]
    assert done.stdout.endswith("\nset()\n")


def test_completion_offers_them(put_package):
    put_package("broken", {"fedavgz": "broken:A"}, "raise RuntimeError")
    assert complete_algorithms("fedavg") == ["fedavg", "fedavgz"]
    assert complete_algorithms("fedprox,fedavgz") == ["fedprox,fedavgz"]


def test_a_study_names_what_only_this_process_knows(run_main, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "REGISTERED", {})
    registry.register("mine", FedAvg)
    for command in ("compare", "tune"):
        done = run_main(command, "digits", "-a", "fedavg,mine", "--out", str(tmp_path / "study"))
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "error: algorithm 'mine' is registered in this process, but each run of a study is a" in done.stderr
    assert not (tmp_path / "study").exists()


def interrupt(_):
    raise KeyboardInterrupt


@pytest.mark.usefixtures("restore_threads")
def test_a_manifest_has_the_packages_version_and_a_resume_with_another_warns(put_package, tmp_path, recwarn):
    put_package("fed-avgx", {"fedavgx": "fed_avgx:FedAvgX"}, version="1.0")
    folder, experiment = RunFolder(tmp_path / "run"), load("digits", FEW)
    with pytest.raises(Interrupted):
        execute(experiment, folder, resume=False, report=False, on_round=interrupt)
    versions = json.loads(folder.manifest.read_text())["versions"]
    assert versions["fed-avgx"] == "1.0"
    assert list(versions)[:2] == ["python", "fedadamw"]
    warn_of_other_package("fedavgx", folder.read_manifest())
    assert not recwarn
    put_package("fed-avgx", {"fedavgx": "fed_avgx:FedAvgX"}, version="1.1")
    with pytest.warns(UserWarning, match=r"'fedavgx' is of package fed-avgx 1.1 now; .* with version 1.0, which may"):
        execute(experiment, folder, resume=True, report=False)
    assert len(folder.records()) == 2
