"""A node's privacy ledger: what training on its data may have told, over all runs; charged before each training.

In the folder `privacy` of the node's state folder:

    ledger.jsonl   a first line, then a line for each training (of one round); each has a digest of all before it
    last.json      how many lines there are, and the last: written before that line itself, so a torn one is completed
    lock           held while these are read and written

A training is in the ledger, on disk, before it begins. So whatever was sent was charged, wherever the process is
killed; what was charged stays so, even if the training failed. Files that are damaged or missing are an error, never a
new ledger.
"""

import fcntl
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from fedadamw.checkpoint import CheckpointError, write_atomically
from fedadamw.io.disk import report_full_disk
from fedadamw.privacy.accountant import Mechanism
from fedadamw.validation import InputError, check

FOLDER, LEDGER, LAST, LOCK = "privacy", "ledger.jsonl", "last.json", "lock"
FORMAT = 1
LOCK_S = 60.0  # to wait for another process
CANNOT_KNOW = "what the node has spent cannot be known; restore the whole folder from a backup"


class LedgerError(CheckpointError):
    """A ledger is damaged, incomplete or in use."""


class Charge(NamedTuple):
    """One training: `times` noisy steps, each on a batch that has each sample with probability `rate`."""

    run: str  # its name in the federation
    client: int
    round: int  # from 1
    noise_multiplier: float  # 0: without noise, so that anything may have been told
    rate: float
    times: int
    epsilon: float | None = None  # the node's own budget then; None: none
    delta: float | None = None
    time: str = ""  # ISO 8601, UTC

    @property
    def mechanism(self) -> Mechanism:
        """What the accountant composes."""
        return Mechanism(self.noise_multiplier, self.rate, self.times)


class RunSpent(NamedTuple):
    """The trainings of one run."""

    trainings: int
    mechanisms: list[Mechanism]
    first: str  # ISO 8601, UTC
    last: str


class Spent(NamedTuple):
    """What a ledger says."""

    path: Path
    begun: str  # ISO 8601, UTC
    mechanisms: list[Mechanism]  # of all runs
    runs: dict[str, RunSpent]  # by name, in the order of their first trainings
    epsilon: float | None  # the node's own budget at its last training; None: none
    delta: float | None

    @property
    def trainings(self) -> int:
        """The number of trainings."""
        return sum(run.trainings for run in self.runs.values())


class Ledger:
    """The ledger in `folder`. Several processes may use it: lines are written under a lock."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / LEDGER
        self._last = folder / LAST

    @staticmethod
    def of(state: Path) -> "Ledger":
        """Return the ledger of the node with this state folder."""
        return Ledger(state / FOLDER)

    @property
    def begun(self) -> bool:
        """Whether there is a ledger, or what is left of one."""
        return self.path.exists() or self._last.exists()

    def charges(self) -> list[Charge]:
        """Return what has been charged; raises LedgerError if that cannot be known."""
        return self._read()[1] if self.begun else []

    def charge(self, charge: Charge, check_total: Callable[[Sequence[Mechanism]], None]) -> None:
        """Write a charge to disk. check_total: called with all mechanisms, this one included; it raises if too many.

        Raises LedgerError if the ledger is damaged or in use, DiskFullError; then nothing may be trained.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked():
            if not self.begun:
                first = _write_line({"format": FORMAT, "name": uuid4().hex, "begun": _now()}, "")
                write_atomically(self.path, first.encode() + b"\n")
            lines, charges = self._read()
            check_total(compose([*charges, charge]))
            if self._lines() < len(lines):
                self._write(lines)
            facts = charge._replace(time=_now())._asdict()
            lines.append(_write_line(facts, str(json.loads(lines[-1])["digest"])))
            self._write_last(lines)
            self._write(lines)

    def read(self) -> tuple[str, list[Charge]]:
        """Return when the ledger begins (ISO 8601), and what has been charged; raises LedgerError if it is damaged."""
        lines, charges = self._read()
        return str(json.loads(lines[0])["begun"]), charges

    def _lines(self) -> int:
        """The number of complete lines in the file."""
        return self.path.read_bytes().count(b"\n")

    def _read(self) -> tuple[list[str], list[Charge]]:
        """Return the lines, a torn last one completed, and what they charge; nothing is written."""
        count, last = self._read_last()
        if not self.path.exists():
            raise self._damage(f"{LEDGER} is missing")
        *lines, torn = self.path.read_text(errors="replace").split("\n")
        if len(lines) == count - 1:
            lines, torn = [*lines, last], ""
        if len(lines) != count or torn:
            raise self._damage(f"{LEDGER} has {len(lines)} lines of {count}")
        if lines[-1] != last:
            raise self._damage(f"the last line of {LEDGER} is not that of {LAST}")
        return lines, list(self._parse(lines))

    def _read_last(self) -> tuple[int, str]:
        """Return the number of lines, and the last one."""
        try:
            facts = json.loads(self._last.read_text(errors="replace"))
            return int(facts["lines"]), str(facts["line"])
        except FileNotFoundError:
            first, *more = self.path.read_text(errors="replace").split("\n")
            if more != [""]:
                raise self._damage(f"{LAST} is missing") from None
            return 1, first  # nothing has been charged yet
        except (ValueError, TypeError, KeyError):
            raise self._damage(f"{LAST} cannot be read") from None

    def _parse(self, lines: Sequence[str]) -> Iterator[Charge]:
        """Yield the charges; raises LedgerError if a line is not what was written."""
        before = ""
        for number, line in enumerate(lines, start=1):
            try:
                facts, before = _read_line(line, before)
                if number > 1:
                    yield Charge(**facts)
                else:
                    check(facts["format"] == FORMAT, "the format is another")
            except (ValueError, TypeError, KeyError, AttributeError):
                raise self._damage(f"line {number} of {LEDGER} is not what was written") from None

    def _write_last(self, lines: Sequence[str]) -> None:
        write_atomically(self._last, json.dumps({"lines": len(lines), "line": lines[-1]}).encode())

    def _write(self, lines: Sequence[str]) -> None:
        """Write the last of the lines after those before it, over what is torn there."""
        with report_full_disk(self.path), open(self.path, "r+b") as file:
            file.seek(sum(len(line.encode()) + 1 for line in lines[:-1]))
            file.write(lines[-1].encode() + b"\n")
            file.truncate()
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Context that only one process is in; raises LedgerError if another is for LOCK_S."""
        until = time.monotonic() + LOCK_S
        with open(self.folder / LOCK, "w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise LedgerError(f"{self.folder}: in use by another process for {LOCK_S:g} s") from None
                    time.sleep(0.05)
            yield

    def _damage(self, why: str) -> LedgerError:
        return LedgerError(f"{self.folder}: the privacy ledger is damaged: {why}; {CANNOT_KNOW}")


def compose(charges: Iterable[Charge]) -> list[Mechanism]:
    """Return the mechanisms of charges, equal ones as one."""
    times: Counter[tuple[float, float]] = Counter()
    for charge in charges:
        times[charge.noise_multiplier, charge.rate] += charge.times
    return [Mechanism(*kind, count) for kind, count in times.items()]


def find_ledger(place: Path) -> Path | None:
    """Return the folder of the ledger at `place`: a node's state folder, that folder, or the file; None if none."""
    folders = (place.parent,) if place.name == LEDGER else (place / FOLDER, place)
    return next((folder for folder in folders if Ledger(folder).begun), None)


def read_spent(place: Path) -> Spent:
    """Return what the ledger at `place` says; see `find_ledger`.

    Raises InputError if there is none there, LedgerError if it is damaged.
    """
    folder = find_ledger(place)
    if folder is None:
        raise InputError(f"{place}: holds no privacy ledger; give a node's state-dir, or its {FOLDER}/{LEDGER}")
    begun, charges = Ledger(folder).read()
    runs: dict[str, list[Charge]] = {}
    for charge in charges:
        runs.setdefault(charge.run, []).append(charge)
    told = {run: RunSpent(len(own), compose(own), own[0].time, own[-1].time) for run, own in runs.items()}
    epsilon, delta = (charges[-1].epsilon, charges[-1].delta) if charges else (None, None)
    return Spent(folder / LEDGER, begun, compose(charges), told, epsilon, delta)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _write_line(facts: dict[str, Any], before: str) -> str:
    """Return a line with facts and the digest of them and all before, whose digest is `before`."""
    return json.dumps({**facts, "digest": _digest(facts, before)})


def _read_line(line: str, before: str) -> tuple[dict[str, Any], str]:
    """Return a line's facts and digest; raises ValueError if that is not the digest of them and all before."""
    facts = json.loads(line)
    digest = facts.pop("digest")
    check(digest == _digest(facts, before), "the digest is another")
    return facts, digest


def _digest(facts: dict[str, Any], before: str) -> str:
    return hashlib.sha256((before + json.dumps(facts, sort_keys=True)).encode()).hexdigest()[:32]
