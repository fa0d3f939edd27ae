"""Errors of a run that a user can act on: one line, no traceback."""

import signal
import warnings

import pytest

from fedadamw.cli import run_and_exit
from fedadamw.engine.clients import QuorumError


def test_a_round_without_a_quorum_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def command():
        raise QuorumError("round 1: 0 of 10 clients are online, 2 are needed")

    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        run_and_exit(command)
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines() == ["error: round 1: 0 of 10 clients are online, 2 are needed"]
