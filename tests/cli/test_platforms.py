"""Systems other than Linux, imitated by removing what only Linux has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.checkout import ROOT

from fedadamw.engine.ranks import _File


@pytest.fixture
def without_linux_calls(tmp_path, monkeypatch):
    """Child processes see only the part of `os` that macOS has."""
    names = ("pidfd_open", "memfd_create", "sched_getaffinity", "posix_fallocate", "posix_fadvise")
    lines = [f"os.__dict__.pop({name!r}, None)" for name in names]
    (tmp_path / "sitecustomize.py").write_text("\n".join(["import os", *lines]))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_a_worker_ends_with_its_node_without_pidfds(without_linux_calls, tmp_path, monkeypatch):
    pytest.importorskip("flwr", reason="Flower needs Python 3.11")
    from fedadamw.flower.node import worker, worker_client

    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        worker_client.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    node = popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    place = worker_client._socket_path(node.pid, {})
    with worker_client._connect(place, node.pid) as connection:
        worker_client.send(connection, {"ask": "hello"}, {})
        assert "KeyError: 'config'" in worker_client.receive(connection)[0]["error"]
    assert started[0].poll() is None
    node.communicate()
    assert started[0].wait(10) == 0
    assert not place.exists()
    assert worker.watch_process(node.pid)()  # also by the way of Linux, for what has ended already
    monkeypatch.delattr(os, "pidfd_open")
    assert worker.watch_process(node.pid)()
    assert not worker.watch_process(os.getpid())()
    place.with_suffix(".lock").unlink()


def test_ranks_share_files_without_memfds(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    tensor = torch.arange(5.0)
    file = _File.of(tensor)
    file.write(tensor)
    mapped = file.map_tensor()
    file.close()
    assert torch.equal(mapped, tensor)
    assert not Path(file.path).exists()


def test_the_fork_server_on_macos_preloads_no_frameworks():
    look = "import os, sys; os._exit(len({'torch', 'transformers'} & set(sys.modules)))"
    code = f"""
import sys
from fedadamw.runner.fork_server import start_fork_server
sys.platform = "darwin"
process = start_fork_server().Process(target=exec, args=({look!r},))
process.start()
process.join()
sys.exit(process.exitcode)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_on_windows_the_optimizer_works_and_commands_refuse(tmp_path, run_main, monkeypatch):
    code = """
import os, sys
for name in ("fcntl", "termios", "pwd", "grp"):
    sys.modules[name] = None
import torch, fedadamw
del os.O_DIRECTORY, os.getuid, os.pidfd_open
model = torch.nn.Linear(2, 2)
blocks = fedadamw.Blocks.of(model)
server = fedadamw.Server(model, blocks)
fedadamw.save(server.broadcast(), "down")
opt = fedadamw.FedAdamW(model.named_parameters(), blocks=blocks)
opt.start_round(fedadamw.load("down"))
model(torch.ones(1, 2)).sum().backward()
opt.step()
server.update([opt.finish_round()])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(sys, "platform", "win32")
    done = run_main("list")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "use WSL" in done.stderr


def test_readme_and_classifiers_name_the_same_systems():
    classifiers = (ROOT / "pyproject.toml").read_text()
    assert '"Operating System :: POSIX :: Linux"' in classifiers
    assert '"Operating System :: MacOS"' in classifiers
    assert "Operating System :: Microsoft" not in classifiers
    assert "It runs on Linux, and on macOS" in (ROOT / "README.md").read_text()
