"""Warnings on the command line: one line each, however often the same is found."""

import signal
import warnings

from fedadamw.cli import run_and_exit


def test_a_warning_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def command():
        for text in ("few scores", "few scores", "slow"):
            warnings.warn(text, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        run_and_exit(command)
    assert capsys.readouterr().err.splitlines() == ["warning: few scores", "warning: slow"]
