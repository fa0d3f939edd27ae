"""Compare buffered rounds with synchronous ones, with a deadline and waiting for all, at equal virtual time.

The speeds of the clients' devices are log-normal, the fast ones ten times as fast as the slow ones. At any time ten
clients work: the mode that waits takes the answers of all ten, the one with a deadline the first eight, and the
buffered one makes a version of every five. Fleet, data and first model of a seed are the same for all modes; a run has
as many rounds as end within the virtual time that the mode that waits takes.

Each algorithm has its own learning rate and alpha in each mode, chosen on held-out training data: first the rate, on a
grid that grows while its best is at an end, then alpha at that rate. Seeds, trials and intervals follow
benchmarks/evidence/rule.py; five seeds are reported, the same for all.

Each run is one file in runs/asynchronous; finished ones are not repeated, and a killed one goes on at its last
checkpoint. Those that ended elsewhere come from benchmarks/results/finished.

    python -m benchmarks.measure.asynchronous --data ./data [--workers 1] [--record]
    python -m benchmarks.measure.asynchronous --plan               # what is left, and how long it takes
    python -m benchmarks.measure.asynchronous --data ./data --small      # two rounds of each, to try it
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from itertools import chain, combinations
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import finished, records
from benchmarks.common.arguments import names_of, new_parser
from benchmarks.common.resumable import run_all
from benchmarks.common.scored import say, scores_of
from benchmarks.evidence.rule import compare
from benchmarks.measure.asynchronous_jobs.cells import ALGORITHMS, Cell
from benchmarks.measure.asynchronous_jobs.jobs import AT_WORK, DEVICES, FOLDER, MODES, SUBJECTS, WHAT, run


def main() -> None:
    args = parse()
    finished.restore(WHAT)
    cells = {name: cells_of(name, small=args.small) for name in args.only.split(",")}
    if args.plan:
        print_plan(cells)
        return
    every = list(chain.from_iterable(cells.values()))
    run_job = partial(run, data=args.data.resolve())
    run_all(lambda: chain.from_iterable(map(Cell.missing, every)), run_job, args.workers, say)
    content = {
        **records.provenance(),
        "small": args.small,
        "at_work": AT_WORK,
        "devices": DEVICES,
        "modes": MODES,
        "subjects": {name: result_of(name, own) for name, own in cells.items()},
    }
    records.write(WHAT, "cpu", content, record=args.record)


def cells_of(subject: str, *, small: bool) -> list[Cell]:
    """Return all cells of a subject."""
    return [Cell(subject, mode, algorithm, small) for algorithm in ALGORITHMS for mode in MODES]


def result_of(subject: str, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return what the record keeps of a subject."""
    of, found = SUBJECTS[subject], [cell.result() for cell in cells]
    known = {"title": of.title, "recipe": of.recipe, "settings": of.settings, "deadline_s": of.deadline_s}
    return {**known, "cells": found, "paired": pair(found)}


def pair(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare by seed the modes of each algorithm, later ones less earlier ones, and the algorithms in each mode."""
    scores = {(cell["algorithm"], cell["mode"]): scores_of(cell) for cell in cells}
    pairs = [((name, ours), (name, base)) for name in ALGORITHMS for base, ours in combinations(MODES, 2)]
    pairs += [((ours, mode), (base, mode)) for mode in MODES for ours, base in combinations(ALGORITHMS, 2)]
    found = []
    for ours, base in pairs:
        paired = compare(scores[ours], scores[base])
        found.append({"ours": ours, "base": base, **({} if paired is None else paired._asdict())})
    return found


def print_plan(cells: dict[str, list[Cell]]) -> None:
    """Print how many runs are left, and the minutes of one core that they take."""
    total = 0.0
    for name, own in cells.items():
        measured = [json.loads(file.read_text())["cpu_s"] for file in FOLDER.glob(f"{name}_*.json")]
        each = mean(measured) if measured else SUBJECTS[name].run_s
        left = sum(map(Cell.left, own))
        total += left * each / 60
        known = f"{len(measured)} measured" if measured else "none measured yet"
        print(f"{name}: about {left} runs of {each:.0f} s ({known}): {left * each / 60:.0f} minutes of one core")
    print(f"about {total:.0f} minutes")


def parse() -> argparse.Namespace:
    """The options; a record has all runs in full."""
    parser = new_parser(__doc__, devices=("cpu",))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of cifar10")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, of one thread each")
    known = names_of(SUBJECTS)
    parser.add_argument(
        "--only", type=known, default=",".join(SUBJECTS), metavar="NAME,...", help=f"of {', '.join(SUBJECTS)}"
    )
    parser.add_argument("--small", action="store_true", help="two rounds and one seed of each")
    parser.add_argument("--plan", action="store_true", help="print what is left; run nothing")
    args = parser.parse_args()
    if args.record and (args.small or args.only != ",".join(SUBJECTS)):
        parser.error("a record has all runs in full: --record excludes --small and --only")
    return args


if __name__ == "__main__":
    main()
