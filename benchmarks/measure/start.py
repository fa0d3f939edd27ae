"""Measure how long commands take until they do their work, and until the prompt is back.

Every command runs in a process of its own, in turns; the CPU time is of all its processes. A run's first round begins
when its config.yaml is written. CIFAR-10 begins with an empty cache, and again with the images decoded already.

    python -m benchmarks.measure.start [--data ./data/cifar10] [--repeats 3] [--record]
    python -m benchmarks.measure.start --only help,list
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from benchmarks.common.records import ROOT
from fedadamw.runner.manifest import commit, device_name

CORES = len(os.sched_getaffinity(0))


class Way(NamedTuple):
    """One command."""

    arguments: tuple[str, ...]
    folder: str | None = None  # of its caches, shared by the ways of the same; None: the user's own
    cold: bool = False  # the folder is emptied before


class Timing(NamedTuple):
    """What one call took, in seconds."""

    wall_s: float
    cpu_s: float
    first_round_s: float | None  # until the first round begins; None if the command is no run


def ways(data: Path) -> dict[str, Way]:
    """Return the commands by name; those of CIFAR-10 only where its files are."""
    own = {
        "help": Way(("--help",)),
        "list": Way(("list",)),
        "doctor": Way(("doctor",)),
        "digits, 1 rank, 1 round": Way(("run", "digits", "--ranks", "1", "-s", "training.rounds=1")),
        f"digits, {CORES} ranks, 1 round": Way(("run", "digits", "--ranks", str(CORES), "-s", "training.rounds=1")),
        "digits": Way(("run", "digits")),
    }
    if not data.is_dir():
        print(f"{data}: no such folder, so CIFAR-10 is left out")
        return own
    cifar = ("run", "cifar10-small", "-s", f"data.source={data.resolve()}", "-s", "training.rounds=1")
    return {
        **own,
        "cifar10-small, 1 round, empty cache": Way(cifar, "cifar10", cold=True),
        "cifar10-small, 1 round": Way(cifar, "cifar10"),
    }


def main() -> None:
    parser = new_parser(__doc__, devices=("cpu",))
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"), help="folder of CIFAR-10's Parquet files")
    parser.add_argument("--only", help="run the commands whose names begin with one of these, such as help,list")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.record and (args.only or not args.data.is_dir()):
        parser.error("a record has all commands: --record excludes --only and needs --data")
    prefixes = tuple((args.only or "").split(","))
    chosen = {name: way for name, way in ways(args.data).items() if name.startswith(prefixes)}
    rows = measure(chosen, args.repeats)
    print(f"{'':38}{'first round':>12}{'prompt':>9}{'CPU':>9}   s")
    for name, row in rows.items():
        first = "" if row["first_round_s"] is None else f"{row['first_round_s']:.2f}"
        print(f"{name:38}{first:>12}{row['wall_s']:9.2f}{row['cpu_s']:9.2f}")
    content = {
        "commit": commit(),
        "device": device_name(torch.device("cpu")),
        "cores": CORES,
        "torch": torch.__version__,
        "repeats": args.repeats,
        "commands": rows,
    }
    records.write("start", args.device, content, record=args.record)


def measure(chosen: dict[str, Way], repeats: int) -> dict[str, dict[str, float | None]]:
    """Return the median of each command's timings."""
    found: dict[str, list[Timing]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as scratch:
        for _ in range(repeats):
            for name, way in chosen.items():
                found[name].append(call(way, Path(scratch)))
    return {name: summarize(timings) for name, timings in found.items()}


def summarize(timings: Sequence[Timing]) -> dict[str, float | None]:
    """Return the medians."""
    firsts = [timing.first_round_s for timing in timings if timing.first_round_s is not None]
    return {
        "first_round_s": round(statistics.median(firsts), 3) if firsts else None,
        "wall_s": round(statistics.median(timing.wall_s for timing in timings), 3),
        "cpu_s": round(statistics.median(timing.cpu_s for timing in timings), 3),
    }


def call(way: Way, scratch: Path) -> Timing:
    """Run one command as a user does."""
    out, environment = scratch / "run", dict(os.environ)
    shutil.rmtree(out, ignore_errors=True)
    if way.folder is not None:
        if way.cold:
            shutil.rmtree(scratch / way.folder, ignore_errors=True)
        environment["HF_HOME"] = str(scratch / way.folder)
    is_run = way.arguments[0] == "run"
    command = [sys.executable, "-m", "fedadamw", *way.arguments, *(("--out", str(out)) if is_run else ())]
    start, begun = time.perf_counter(), time.time()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment, cwd=ROOT)
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"fedadamw {' '.join(way.arguments)}: {said.read()[-2000:]}")
    first = (out / "config.yaml").stat().st_mtime - begun if is_run else None
    return Timing(wall_s, used.ru_utime + used.ru_stime, first)


if __name__ == "__main__":
    main()
