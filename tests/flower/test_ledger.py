"""A node's privacy ledger: it is never below what was sent, wherever a process is killed, and no loss is unseen."""

import json
import multiprocessing
import os
import shutil
import signal
import threading

import pytest

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from fedadamw.flower.node import ledger as module
from fedadamw.flower.node.ledger import Charge, Ledger, LedgerError, compose, read_spent
from fedadamw.flower.protocol import DeclinedError
from fedadamw.privacy.accountant import Mechanism
from fedadamw.validation import InputError

TRAINING = Charge("run", 0, 0, 1.5, 0.04, 10)


def anything(_):
    """Allow any total."""


def charge(state, round_=1, **other):
    Ledger.of(state).charge(TRAINING._replace(round=round_, **other), anything)


def rounds(state):
    return [charge.round for charge in Ledger.of(state).charges()]


def test_charges_of_all_runs_are_composed(tmp_path):
    assert rounds(tmp_path) == []
    assert not Ledger.of(tmp_path).begun
    for round_ in (1, 2, 2):  # the last is a retry
        charge(tmp_path, round_)
    charge(tmp_path, 1, run="other", noise_multiplier=2.0, epsilon=8.0, delta=1e-6)
    assert rounds(tmp_path) == [1, 2, 2, 1]
    spent = read_spent(tmp_path)
    assert spent == read_spent(tmp_path / "privacy") == read_spent(tmp_path / "privacy/ledger.jsonl")
    assert spent.mechanisms == [Mechanism(1.5, 0.04, 30), Mechanism(2.0, 0.04, 10)]
    assert {run: told.mechanisms for run, told in spent.runs.items()} == {
        "run": [Mechanism(1.5, 0.04, 30)],
        "other": [Mechanism(2.0, 0.04, 10)],
    }
    assert (spent.epsilon, spent.delta, spent.trainings) == (8.0, 1e-6, 4)
    assert spent.begun <= spent.runs["run"].first <= spent.runs["run"].last <= spent.runs["other"].first
    assert (tmp_path / "privacy").stat().st_mode & 0o077 == 0


def test_a_total_that_is_too_large_is_not_charged(tmp_path):
    def at_most_two(mechanisms):
        if sum(m.times for m in mechanisms) > 20:
            raise DeclinedError("spent")

    for _ in range(2):
        Ledger.of(tmp_path).charge(TRAINING, at_most_two)
    before = (tmp_path / "privacy/ledger.jsonl").read_bytes()
    with pytest.raises(DeclinedError):
        Ledger.of(tmp_path).charge(TRAINING, at_most_two)
    assert (tmp_path / "privacy/ledger.jsonl").read_bytes() == before


def die(*_args, **_kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def after(call):
    """Return a function that does what `call` does, and is then killed."""

    def do(*args, **kwargs):
        call(*args, **kwargs)
        die()

    return do


def torn(self, lines):
    """Write half a line, and be killed."""
    with open(self.path, "ab") as file:
        file.write(lines[-1].encode()[: len(lines[-1]) // 2])
        file.flush()
        die()


PLACES = {  # where the process is killed, and whether the training is charged by then
    "before anything": (lambda: setattr(Ledger, "_read", die), False),
    "before its last line is known": (lambda: setattr(Ledger, "_write_last", die), False),
    "before its line": (lambda: setattr(Ledger, "_write", die), True),
    "in its line": (lambda: setattr(Ledger, "_write", torn), True),
    "before its line is on disk": (lambda: setattr(module.os, "fsync", after_two(os.fsync)), True),
    "after it": (lambda: setattr(Ledger, "_write", after(Ledger._write)), True),
}


def after_two(fsync):
    """Return an fsync that is killed at the ledger's own, after those of last.json and of the folder."""
    calls = []

    def do(descriptor):
        calls.append(descriptor)
        if len(calls) > 2:
            die()
        fsync(descriptor)

    return do


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_a_killed_process_leaves_a_ledger_that_goes_on(tmp_path, place, begun):
    kill_there, charged = PLACES[place]
    if begun:
        charge(tmp_path, 1)
    child = os.fork()
    if not child:
        if not begun and place == "before its line is on disk":
            Ledger.of(tmp_path).folder.mkdir()
            module.write_atomically(tmp_path / "privacy/ledger.jsonl", first_line())
        kill_there()
        charge(tmp_path, 2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    before = [1] if begun else []
    there = before + ([2] if charged else [])
    assert rounds(tmp_path) == there
    if there:
        assert read_spent(tmp_path).trainings == len(there)
    charge(tmp_path, 3)
    assert rounds(tmp_path) == [*there, 3]
    text = (tmp_path / "privacy/ledger.jsonl").read_text()
    assert text.endswith("\n")
    assert [json.loads(line).get("round") for line in text.splitlines()] == [None, *there, 3]


def first_line():
    return module._write_line({"format": module.FORMAT, "name": "0", "begun": "2026-01-01"}, "").encode() + b"\n"


def cut(path, lines):
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:lines]))


DAMAGES = {
    "ledger deleted": lambda folder: (folder / "ledger.jsonl").unlink(),
    "last.json deleted": lambda folder: (folder / "last.json").unlink(),
    "last.json emptied": lambda folder: (folder / "last.json").write_text(""),
    "last.json of another kind": lambda folder: (folder / "last.json").write_text("[1]"),
    "ledger emptied": lambda folder: (folder / "ledger.jsonl").write_text(""),
    "an older copy": lambda folder: cut(folder / "ledger.jsonl", 2),
    "a line taken out": lambda folder: (folder / "ledger.jsonl").write_text(
        "".join(line + "\n" for i, line in enumerate((folder / "ledger.jsonl").read_text().splitlines()) if i != 1)
    ),
    "a number changed": lambda folder: (folder / "ledger.jsonl").write_text(
        (folder / "ledger.jsonl").read_text().replace("1.5", "9.5", 1)
    ),
    "garbage": lambda folder: (folder / "ledger.jsonl").write_bytes(b"\xff\x00\n" * 4),
    "a line added": lambda folder: (folder / "ledger.jsonl").write_text(
        (folder / "ledger.jsonl").read_text() + '{"round": 9}\n'
    ),
    "half a line added": lambda folder: (folder / "ledger.jsonl").write_text(
        (folder / "ledger.jsonl").read_text() + '{"rou'
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_is_refused_and_left_as_it_is(tmp_path, damage):
    for round_ in (1, 2, 3):
        charge(tmp_path, round_)
    kept = shutil.copytree(tmp_path / "privacy", tmp_path / "backup")
    DAMAGES[damage](tmp_path / "privacy")
    before = {path.name: path.read_bytes() for path in (tmp_path / "privacy").iterdir()}
    for use in (lambda: charge(tmp_path, 4), lambda: rounds(tmp_path), lambda: read_spent(tmp_path)):
        with pytest.raises(LedgerError, match="the privacy ledger is damaged: .*restore the whole folder") as error:
            use()
        assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "privacy").iterdir()} == before
    shutil.rmtree(tmp_path / "privacy")
    kept.rename(tmp_path / "privacy")
    charge(tmp_path, 4)
    assert rounds(tmp_path) == [1, 2, 3, 4]


def test_processes_that_share_a_ledger_lose_no_charge(tmp_path):
    def work(offset):
        for i in range(5):
            charge(tmp_path, offset + i)

    children = [multiprocessing.get_context("fork").Process(target=work, args=(100 * i,)) for i in range(2)]
    threads = [threading.Thread(target=work, args=(100 * i,)) for i in (2, 3)]
    for worker in (*children, *threads):
        worker.start()
    for worker in (*children, *threads):
        worker.join()
    assert sorted(rounds(tmp_path)) == sorted(100 * i + j for i in range(4) for j in range(5))


def test_a_ledger_in_use_is_waited_for_and_then_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOCK_S", 0.1)
    charge(tmp_path)
    with Ledger.of(tmp_path)._locked(), pytest.raises(LedgerError, match="in use by another process for 0.1 s"):
        charge(tmp_path)
    charge(tmp_path)


def test_a_full_disk_charges_and_says_so(tmp_path, monkeypatch):
    charge(tmp_path, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "_write", full)
        with pytest.raises(OSError, match="No space left"):
            charge(tmp_path, 2)
    charge(tmp_path, 3)
    assert rounds(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("place", ["", "nothing", "other.txt"])
def test_a_place_without_a_ledger_says_what_to_give(tmp_path, place):
    (tmp_path / "other.txt").write_text("")
    with pytest.raises(InputError, match="holds no privacy ledger; give a node's state-dir"):
        read_spent(tmp_path / place)


def test_equal_mechanisms_are_one():
    assert compose([TRAINING, TRAINING, TRAINING._replace(rate=1.0)]) == [
        Mechanism(1.5, 0.04, 20),
        Mechanism(1.5, 1.0, 10),
    ]
