"""Fixtures: the command in this process, runs that several tests look at, the registry with more algorithms."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.command import SHORT, command
from support.sequences import SequenceTask

from fedadamw.algorithms.registry import ALGORITHMS
from fedadamw.cli import main

torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start: they share two cores


@pytest.fixture
def typed(monkeypatch, capsys) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """`command` in this process, for what is refused: it saves a start of seconds."""
    terminate, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main sets these for a process of its own
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["fedadamw", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, ended.value.code, said.out, said.err)

    yield run
    signal.signal(signal.SIGTERM, terminate)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """once(name, make): the folder that make(folder) filled, in the first of the parallel test processes that asks."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = base / f"once-{name}", base / f"once-{name}.done"
        with open(base / f"once-{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def finished(once) -> Path:
    """A whole run of digits, never interrupted."""

    def make(folder: Path) -> None:
        done = command("run", "digits", *SHORT, "--out", str(folder / "run"))
        assert done.returncode == 0, done.stderr

    return once("run", make) / "run"


@pytest.fixture
def task() -> SequenceTask:
    return SequenceTask()


@pytest.fixture
def everywhere(monkeypatch) -> None:
    """The registry has what cases.EVERYWHERE names."""
    from support.cases import register

    register(lambda name, algorithm: monkeypatch.setitem(ALGORITHMS, name, algorithm))


@pytest.fixture
def one_thread():
    """torch with as many threads after the test as before it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
