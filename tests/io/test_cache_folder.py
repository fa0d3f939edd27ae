"""A folder of caches: one process writes at a time, and what nobody uses goes."""

import os
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from fedadamw.io.cache_folder import KEEP_S, hold_lock, mark_used, remove_unused


def write_if_missing(lock: Path, file: Path) -> None:
    with hold_lock(lock):
        if not file.exists():
            time.sleep(0.3)
            with open(file, "a") as written:
                written.write("x")


def test_one_process_writes_and_the_other_waits(tmp_path):
    place = (tmp_path / "new" / "lock", tmp_path / "file")
    processes = [get_context("fork").Process(target=write_if_missing, args=place) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert place[1].read_text() == "x"
    assert list(place[0].parent.iterdir()) == []


def test_a_folder_that_cannot_be_written_has_no_lock(tmp_path):
    (tmp_path / "file").touch()
    with hold_lock(tmp_path / "file" / "lock"):
        pass
    mark_used(tmp_path / "file" / "cache")
    remove_unused(tmp_path / "file")
    with pytest.raises(ValueError, match="its own"), hold_lock(tmp_path / "lock"):
        raise ValueError("an error in the block is its own")


def test_the_oldest_unused_files_go_until_the_folder_is_small_enough(tmp_path):
    for number, age in enumerate((4, 3, 2, 0)):
        file = tmp_path / f"{number}"
        file.write_bytes(bytes(100))
        os.utime(file, (0, time.time() - age * KEEP_S))
    remove_unused(tmp_path, 250)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["2", "3"]
    mark_used(tmp_path / "2")
    remove_unused(tmp_path, 0)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["2", "3"]
