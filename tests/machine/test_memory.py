"""What is free in a container: its limit less what it uses, without files that it has read, which make room."""

import pytest

from fedadamw.machine import memory

GB = 2**30


@pytest.fixture
def container(tmp_path, monkeypatch):
    """Make the files in which the system says what a container uses."""
    monkeypatch.setattr(memory, "CGROUP", tmp_path)

    def say(**files):
        for name, text in files.items():
            (tmp_path / f"memory.{name}").write_text(text)

    return say


def test_files_that_were_read_are_free(container):
    container(max=f"{GB // 4}\n", current=f"{GB // 4 - 1000}\n", stat=f"anon 5\ninactive_file {GB // 8}\nslab 1\n")
    assert memory.free_bytes() == GB // 8 + 1000


def test_without_a_limit_it_is_what_the_machine_has(container):
    container(max="max\n", current=f"{10**18}\n")
    assert memory.free_bytes() > 0


def test_a_full_container_has_nothing_free(container):
    container(max=f"{GB}\n", current=f"{GB + 5}\n")
    assert memory.free_bytes() == 0
