"""What `fedadamw doctor` finds: packages, extras, devices, compiler, folders."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from support.checkout import ROOT

from fedadamw.machine import devices, packages, places
from fedadamw.machine.compiler import _find_reason, try_compiler
from fedadamw.machine.survey import try_round
from fedadamw.validation import EXTRAS

UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]  # root that no file obeys
FOR_DEVELOPERS = {"dev", "docs", "examples", "release"}
BLOCK = """
import importlib.machinery, importlib.metadata, os, sys
blocked = os.environ["BLOCKED"].split(",")
original = importlib.metadata.Distribution.from_name.__func__

def from_name(cls, name):
    if name.lower() in blocked:
        raise importlib.metadata.PackageNotFoundError(name)
    return original(cls, name)

importlib.metadata.Distribution.from_name = classmethod(from_name)

find_spec = importlib.machinery.PathFinder.find_spec

def find_unblocked(name, path=None, target=None):
    return None if name.partition(".")[0].replace("_", "-") in blocked else find_spec(name, path, target)

importlib.machinery.PathFinder.find_spec = staticmethod(find_unblocked)
"""


@pytest.fixture
def doctor(tmp_path):
    """doctor(*options, without, prefix, **variables): the command in a process that lacks some packages."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(BLOCK)

    def run(*options, without=(), prefix=(), **variables):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "BLOCKED": ",".join(without), **variables}
        command = [*prefix, sys.executable, "-m", "fedadamw", "doctor", *options]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400)

    return run


def test_every_extra_of_users_has_a_purpose():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) - FOR_DEVELOPERS == set(packages.PURPOSES) == set(EXTRAS)


def test_a_missing_and_an_old_package_are_named_with_what_installs_them(monkeypatch):
    def without(name):
        if name == "optuna":
            raise PackageNotFoundError(name)
        return "0.1" if name in ("peft", "scipy") else version(name)

    monkeypatch.setattr(packages, "version", without)
    extras = {extra.name: extra for extra in packages.check_extras()}
    assert extras["tune"].install == "pip install 'optuna>=4.0'"
    assert extras["tune"].packages == {"optuna": None}
    assert extras["lora"].install == "pip install 'peft>=0.17'"
    assert extras["lora"].packages == {"peft": "0.1"}
    assert packages._check_package("scipy>=1.11") == ("scipy", "0.1", "is 0.1: pip install 'scipy>=1.11'")
    assert packages._check_package("pyyaml>=6.0") == ("pyyaml", version("pyyaml"), None)


def test_a_package_that_cannot_be_imported_is_named_with_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    problem = packages._check_package("pillow>=10.0").problem
    assert problem.startswith("cannot be imported (ModuleNotFoundError: import of PIL")


@pytest.mark.slow
def test_a_round_works_here_and_says_what_fails(monkeypatch):
    assert try_round() is None
    monkeypatch.setitem(sys.modules, "fedadamw.optim.server", None)
    assert try_round().startswith("a round fails: ModuleNotFoundError: ")


def test_cores_and_memory():
    cpu = devices.describe_cpu()
    assert 1 <= cpu.cores <= cpu.all_cores
    assert cpu.memory_gb is None or 0.1 < cpu.memory_gb < 1e5
    gpus, reason = devices.list_gpus()
    assert len(gpus) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert (reason is None) == bool(gpus)


def test_why_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert devices._explain_no_gpu(None).endswith("install torch as pytorch.org says for CUDA")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    if not Path("/proc/driver/nvidia/version").exists():
        assert devices._explain_no_gpu("12.8") == "torch is built for CUDA 12.8, but there is no NVIDIA driver"


def test_a_gpu_that_another_process_has_for_itself_is_named(monkeypatch):
    def refuse(_number):
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors might")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", refuse)
    reason = "cuda:0 cannot be used: CUDA error: CUDA-capable device(s) is/are busy or unavailable"
    assert devices.list_gpus() == ([], reason)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file/home"))
    home = places._check("home", Path.home, "nothing is kept")
    assert home == ("home", "~", None, "Not a directory", "nothing is kept")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for find in (Path.home, Path.cwd, lambda: tmp_path / "not/made/yet"):
        found = places._check("runs", find, "")
        assert found.problem is None
        assert found.free_gb > 0
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"], "nothing is left"


def test_flags_are_shown_without_passwords_and_names(monkeypatch):
    for name in places.FLAGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://me:secret@mirror.example.org/x")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(Path.home() / "models"))
    assert places.list_flags() == {"HF_HUB_OFFLINE": "1", "HF_HOME": "~/models", "HF_ENDPOINT": "mirror.example.org"}


def test_the_reason_of_a_failed_compilation_is_its_own_line():
    trace = (
        'File "x.py", line 1\n  raise\ntorch._inductor.exc.InductorError: InvalidCxxCompiler: No compiler\n\nSet X\n'
    )
    assert _find_reason(trace) == "InvalidCxxCompiler: No compiler"
    assert _find_reason(f"a.cpp:1: fatal error: Python.h: No such file\n{trace}").endswith("Python.h: No such file")
    assert _find_reason("") == "no message"


@pytest.mark.slow
def test_the_compiler_is_tried(tmp_path, monkeypatch):
    if shutil.which("g++") or shutil.which("clang++"):
        compiler = try_compiler("cpu")
        assert (compiler.works, compiler.problem) == (True, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    compiler = try_compiler("cpu")
    assert not compiler.works
    assert compiler.problem.startswith("InvalidCxxCompiler: No working C++ compiler")


@pytest.mark.slow
def test_doctor_in_a_bare_environment_with_a_read_only_home(doctor, tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    prefix = UNPRIVILEGED if os.geteuid() == 0 and shutil.which("setpriv") else []
    if os.geteuid() == 0 and not prefix:
        pytest.skip("root needs setpriv to give up the right to write everywhere")
    bare = [needed[0].partition(">=")[0] for needed in EXTRAS.values()]
    done = doctor("--json", without=bare, prefix=prefix, HOME=str(home))
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["problem"], found["fedadamw"]) == (None, version("fedadamw"))
    assert {package["name"]: package["version"] for package in found["packages"]}["torch"] == version("torch")
    missing = [extra["name"] for extra in found["extras"] if extra["install"]]
    assert missing == list(packages.PURPOSES)
    assert {place["purpose"]: place["problem"] for place in found["places"]}["home"] == "Permission denied"
    assert str(home) not in done.stdout
    assert list(home.iterdir()) == []


@pytest.mark.slow
def test_doctor_without_torch_says_so_and_fails(doctor):
    done = doctor(without=["torch"])
    assert done.returncode == 1
    assert "torch is missing: pip install 'torch>=2.6'" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("fedadamw does not work here: torch is missing")
