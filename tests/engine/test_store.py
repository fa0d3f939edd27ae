"""Clients' memories in RAM and on disk: crashes, resume, many clients."""

import pytest
import torch
from support.cases import CASES
from support.command import run_command
from support.memories import Memory, memory_of
from support.runs import simulation
from support.sequences import attention_model

from fedadamw.checkpoint import CheckpointError, read
from fedadamw.engine.simulate import Saved
from fedadamw.engine.store import InMemory, OnDisk


@pytest.fixture(params=["memory", "disk"])
def store(request, tmp_path):
    return InMemory(memory_of(0.0)) if request.param == "memory" else OnDisk(tmp_path / "clients", 10, memory_of(0.0))


def test_a_memory_is_read_as_of_a_round(store):
    assert store.get(4, 0) is None
    store.put(4, 1, memory_of(1.5))
    assert store.get(4, 0) is None, "round 1 is not over"
    assert store.get(4, 1).c.tolist() == [1.5] * 3
    assert store.get(4, 9).rounds.dtype == torch.float64
    store.put(4, 2, memory_of(2.5))
    assert float(store.get(4, 1).rounds) == 1.5
    assert float(store.get(4, 2).rounds) == 2.5
    assert store.get(5, 9) is None


def test_memories_newer_than_the_checkpoint_are_dropped_after_a_crash(store, tmp_path):
    store.put(1, 3, memory_of(3))
    saved = store.tensors(3)
    for round_ in (4, 5, 6):
        store.put(1, round_, memory_of(round_))
        store.put(2, round_, memory_of(round_))
    again = (
        InMemory(memory_of(0.0)) if isinstance(store, InMemory) else OnDisk(tmp_path / "clients", 10, memory_of(0.0))
    )
    again.restore(3, saved)
    assert float(again.get(1, 3).rounds) == 3
    assert again.get(2, 3) is None


@pytest.mark.parametrize("name", ["scaffold", pytest.param("diloco", marks=pytest.mark.slow), "muloco"])
def test_memories_on_disk_are_bit_identical_to_those_in_ram(name, task, tmp_path):
    here = simulation(CASES[name], task)
    there = simulation(CASES[name], task, memory_folder=tmp_path / "clients")
    for _ in range(3):
        here.step()
        there.step()
    assert torch.equal(here.state.server.x, there.state.server.x)
    assert any(name.startswith("memory.") for name in here.tensors())
    assert not any(name.startswith("memory.") for name in there.tensors()), "a checkpoint stays small"


def test_no_memory_file_without_memories(task, tmp_path):
    sim = simulation(CASES["fedavg"], task, memory_folder=tmp_path / "clients")
    sim.step()
    assert not (tmp_path / "clients").exists()


def test_memories_of_other_clients_are_refused(tmp_path):
    OnDisk(tmp_path, 10, memory_of(0.0))
    with pytest.raises(CheckpointError, match="holds memories of other clients"):
        OnDisk(tmp_path, 11, memory_of(0.0))


def test_a_file_of_memories_that_was_cut_short_is_refused(tmp_path):
    store = OnDisk(tmp_path, 10, memory_of(0.0))
    for client in (3, 7):
        store.put(client, 1, memory_of(client))
    saved = store.tensors(1)
    OnDisk(tmp_path, 10, memory_of(0.0)).restore(1, saved)
    with pytest.raises(CheckpointError, match="the checkpoint has no clients' memories"):
        OnDisk(tmp_path, 10, memory_of(0.0)).restore(1, {})
    with pytest.raises(CheckpointError, match="the checkpoint has no clients' memories"):
        InMemory(memory_of(0.0)).restore(1, {})
    (tmp_path / "memories.bin").write_bytes((tmp_path / "memories.bin").read_bytes()[:-60])
    with pytest.raises(CheckpointError, match="is cut short or missing"):
        OnDisk(tmp_path, 10, memory_of(0.0)).restore(1, saved)
    (tmp_path / "shape.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"shape\.json: cannot be read"):
        OnDisk(tmp_path, 10, memory_of(0.0))


def test_disk_space_grows_with_participating_clients_only(tmp_path):
    d = sum(p.numel() for p in attention_model().parameters())
    template = Memory(torch.zeros(1000 * d), torch.zeros(1))
    store = OnDisk(tmp_path, 100_000, template)
    for client in range(0, 100_000, 5_000):
        store.put(client, 1, Memory(torch.full((1000 * d,), float(client)), torch.ones(1)))
    assert float(store.get(95_000, 1).c[-1]) == 95_000
    assert store.get(95_001, 1) is None
    width = 4 * (1000 * d + 1)
    assert (tmp_path / "memories.bin").stat().st_size <= 20 * 3 * width, "slots of the clients that took part"
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 20 * 3 * width + 100_000 * 32 + 1000


def test_lost_or_moved_memories_are_refused(task, tmp_path):
    here = simulation(CASES["scaffold"], task)
    there = simulation(CASES["scaffold"], task, memory_folder=tmp_path / "clients")
    there.step()
    here.step()
    with pytest.raises(CheckpointError, match="resume with client_memory=disk"):
        simulation(CASES["scaffold"], task).restore(Saved(1, there.tensors()))
    other = simulation(CASES["scaffold"], task, memory_folder=tmp_path / "other")
    with pytest.raises(CheckpointError, match="resume with client_memory=memory"):
        other.restore(Saved(1, here.tensors()))
    with pytest.raises(CheckpointError, match="has memories of 0 clients, the checkpoint of 3"):
        other.restore(Saved(1, there.tensors()))


@pytest.mark.slow
def test_resume_with_memories_on_disk_is_bit_identical(tmp_path):
    arguments = ["run", "digits", "-s", "algorithm.name=scaffold", "-s", "training.steps=1", "-s", "threads=1"]
    arguments += ["-s", "training.evaluate_every=10", "-s", "checkpoint_every=2", "-s", "client_memory=disk"]
    arguments += ["-s", "training.clients_per_round=10", "-s", "partition.clients=20", "-q"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_command(*arguments, "-s", "training.rounds=5", "--out", str(whole)).returncode == 0
    dies = """
import os, sys
from fedadamw.runner.folder import RunFolder
append = RunFolder.append
def dying(self, record):
    append(self, record)
    if record.round == 3:
        os._exit(9)  # after round 3, whose memories are written, with a checkpoint of round 2
RunFolder.append = dying
from fedadamw.cli import main
main()
"""
    import subprocess
    import sys

    given = [*arguments, "-s", "training.rounds=5", "--out", str(parts)]
    died = subprocess.run([sys.executable, "-c", dies, *given], capture_output=True, text=True)
    assert died.returncode == 9, died.stderr
    done = run_command("run", "--resume", "--out", str(parts), "-q")
    assert done.returncode == 0, done.stderr
    state = "checkpoint/state.safetensors"
    assert torch.equal(
        read(whole / state, "checkpoint")[0]["server.x"], read(parts / state, "checkpoint")[0]["server.x"]
    )
    assert torch.equal(
        read(whole / state, "checkpoint")[0]["server.c"], read(parts / state, "checkpoint")[0]["server.c"]
    )
