"""A full disk: one line that names the file, nothing half-written, and a run that goes on once there is room."""

import json
import os
import resource
import subprocess

import pytest
import torch
from safetensors.torch import save_file
from support import tiny_models
from support.memories import memory_of

from fedadamw.checkpoint import write_atomically
from fedadamw.engine.store import OnDisk
from fedadamw.flower import new_app
from fedadamw.io.disk import DiskFullError, _fill_holes, new_folder, reserve_space
from fedadamw.settings.load import load

SMALL = "model.name=vit-nano model.depth=1 algorithm.name=scaffold client_memory=disk threads=1 training.rounds=4"
SMALL += " training.steps=1 training.batch_size=5 training.clients_per_round=2 partition.clients=4 checkpoint_every=1"
SMALL += " data.max_train=100 data.max_test=20 training.evaluate_every=4"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 16 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this user may not mount a disk ({done.stderr.strip()})")
    yield place
    subprocess.run(["umount", "-l", place], check=True)  # lazily: what was mapped there may not be collected yet


@pytest.fixture
def short_files():
    """A function that lets this process write no file beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def leave(disk, room):
    """Fill the disk but for `room` bytes."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    about = os.statvfs(disk)
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, about.f_bavail * about.f_frsize - room)


def test_run_stops_on_a_full_disk_with_one_line_and_resumes_when_there_is_space(small_disk, run_main):
    settings = [word for setting in SMALL.split() for word in ("-s", setting)]
    stopped, out = [], small_disk / "run"
    for room in (8, 64, 2000, 15000):  # kB
        leave(small_disk, room * 1000 - sum(p.stat().st_size for p in out.rglob("*") if p.is_file()))
        done = run_main("run", "digits", *settings, "--out", str(out), "--resume", "--ranks", "1", "-q")
        assert not [*out.rglob("*.new"), *out.rglob("new.*")], "nothing half-written is left"
        if done.returncode:
            assert done.returncode == 1
            assert done.stderr.count("\n") == 1, done.stderr
            assert done.stderr.startswith(f"error: {out}")
            assert "not written, no space left on device" in done.stderr
            stopped.append(done.stderr.split(":")[1].split("/run/")[-1])
    assert done.returncode == 0
    assert stopped == ["config.yaml", "clients/memories.bin", "checkpoint/state.safetensors"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3, 4]


def test_index_of_clients_reserves_its_disk_space(tmp_path):
    OnDisk(tmp_path, 100_000, memory_of(0.0))
    assert (tmp_path / "index.bin").stat().st_blocks * 512 >= 100_000 * 32, "else writing to it may kill the process"


def test_index_that_does_not_fit_on_the_disk_is_refused_before_it_is_mapped(small_disk):
    leave(small_disk, 100_000)
    with pytest.raises(DiskFullError, match=r"index\.bin: not written, no space left on device"):
        OnDisk(small_disk / "clients", 1_000_000, memory_of(0.0))


def test_space_is_reserved_without_posix_fallocate(tmp_path):
    path = tmp_path / "sparse"
    path.write_bytes(b"begun")
    os.truncate(path, 3_000_000)
    with open(path, "r+b") as file:
        _fill_holes(file.fileno(), 3_000_000)
    assert path.stat().st_blocks * 512 >= 3_000_000
    reserve_space(path)
    assert path.read_bytes() == b"begun" + bytes(3_000_000 - 5)


def test_failed_write_keeps_the_old_content_and_leaves_no_other_file(tmp_path, short_files):
    path = tmp_path / "state"
    write_atomically(path, b"old")
    short_files(1000)
    with pytest.raises(DiskFullError, match=r"state: not written, file too large"):
        write_atomically(path, bytes(2000))
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    assert path.read_bytes() == b"old"


def test_failed_write_of_a_memory_keeps_the_previous_one(tmp_path, short_files):
    template = memory_of(0.0)._replace(c=torch.zeros(1000))
    store = OnDisk(tmp_path, 10, template)
    store.put(3, 1, template._replace(c=torch.ones(1000)))
    short_files(6000)
    with pytest.raises(DiskFullError, match=r"memories\.bin: not written"):
        store.put(3, 2, template)
    assert float(store.get(3, 2).c.sum()) == 1000


FOLDERS = {  # as libraries and this package write them
    "weights": lambda to: _in_new(to, lambda aside: save_file({"x": torch.zeros(1000)}, aside / "model.safetensors")),
    "a tokenizer": lambda to: _in_new(to, tiny_models.tokenizer().save_pretrained),
    "an app": lambda to: new_app.write_app(to, load("digits")),
}


def _in_new(to, write):
    with new_folder(to) as aside:
        write(aside)


@pytest.mark.parametrize("what", FOLDERS)
def test_failed_write_of_a_folder_names_it_and_leaves_nothing(what, tmp_path, short_files):
    short_files(500)
    with pytest.raises(DiskFullError, match=rf"^{tmp_path / 'out'}: not written, file too large$"):
        FOLDERS[what](tmp_path / "out")
    assert [*tmp_path.iterdir()] == []
