"""Rows are worked on by forks; one that fails is done again here."""

import os
import signal

import pytest

from fedadamw.data import row_parts
from fedadamw.data.row_parts import map_parts


@pytest.fixture
def three_processes(monkeypatch):
    monkeypatch.setattr(row_parts, "MIN_ROWS", 1)
    monkeypatch.setattr(row_parts, "PART", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)


@pytest.mark.usefixtures("three_processes")
@pytest.mark.parametrize("rows", [0, 1, 5, 12])
def test_parts_come_in_order_whatever_process_did_them(rows):
    found = map_parts(lambda part: [os.getpid(), list(part)], rows)
    assert [row for _, part in found for row in part] == list(range(rows))
    assert len({process for process, _ in found}) == min(3, -(-rows // 2))


@pytest.mark.usefixtures("three_processes")
def test_a_fork_that_fails_or_is_killed_is_done_again_here():
    here = os.getpid()

    def work(part: range) -> list[int]:
        if os.getpid() != here:
            if part.start == 2:
                raise KeyError("a fork's error is not shown")
            os.kill(os.getpid(), signal.SIGKILL)
        return list(part)

    assert map_parts(work, 7) == [[0, 1], [2, 3], [4, 5], [6]]
    with pytest.raises(ZeroDivisionError):
        map_parts(lambda part: 1 // (part.start - 2), 7)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_few_rows_need_no_fork():
    assert map_parts(lambda part: os.getpid(), row_parts.MIN_ROWS - 1) == [os.getpid()] * 2
