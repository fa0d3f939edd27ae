"""Fixtures: the command in this process, runs that several tests share, the registry with test algorithms."""

import fcntl
import gc
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
from support.command import SHORT_RUN, run_command
from support.packages import install
from support.sequences import SequenceTask

from fedadamw.algorithms.plugins import find_plugins
from fedadamw.algorithms.registry import ALGORITHMS, REGISTERED
from fedadamw.cli import main

torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start: they share two cores
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a suite in the background passes that on to what it interrupts
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def run_main(monkeypatch, capsys) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """Run `fedadamw` in this process, which saves seconds: where it does not matter that a command has its own."""
    terminate, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main sets these for a process of its own
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def run(*arguments: str) -> subprocess.CompletedProcess:
        monkeypatch.setattr(sys, "argv", ["fedadamw", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        output = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, ended.value.code, output.out, output.err)

    yield run
    gc.unfreeze()
    signal.signal(signal.SIGTERM, terminate)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """shared_folder(name, make): a folder filled by make(folder), once for all parallel test processes."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make_once(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = base / f"shared-{name}", base / f"shared-{name}.done"
        with open(base / f"shared-{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return make_once


@pytest.fixture(scope="session")
def finished_run(shared_folder) -> Path:
    """A whole run of digits, never interrupted."""

    def make(folder: Path) -> None:
        done = run_command("run", "digits", *SHORT_RUN, "--out", str(folder / "run"))
        assert done.returncode == 0, done.stderr

    return shared_folder("run", make) / "run"


@pytest.fixture(scope="session")
def chromium():
    """A browser, as playwright drives it."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def task() -> SequenceTask:
    return SequenceTask()


@pytest.fixture
def all_algorithms(monkeypatch) -> None:
    """The registry with every algorithm in cases.EVERYWHERE."""
    from support.cases import register

    register(lambda name, algorithm: monkeypatch.setitem(REGISTERED, name, algorithm))


@pytest.fixture
def put_package(tmp_path, monkeypatch) -> Iterator[Callable[..., Path]]:
    """put_package(package, entries, source, version): install a package with algorithms; its folder is returned."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(ALGORITHMS, "_imported", {})

    def put(package: str, *arguments, **keywords) -> Path:
        install(site, package, *arguments, **keywords)
        monkeypatch.delitem(sys.modules, package.replace("-", "_"), raising=False)
        find_plugins.cache_clear()
        return site

    yield put
    find_plugins.cache_clear()


@pytest.fixture
def restore_threads():
    """Restore torch's number of threads after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
