"""Measure accuracy against epsilon: differential privacy of each sample, for three algorithms.

Digits with a small network, and SST-2 with MiniLM and LoRA; epsilon 1, 3, 8, and no privacy; FedAdamW, Local AdamW and
FedAvg. At each epsilon, each algorithm has its own learning rate and clip, chosen on held-out training data with the
same privacy: first the rate, then the clip at that rate, each on a grid that grows while its best is at an end. Seeds,
trials and intervals follow benchmarks/evidence/rule.py; five seeds are reported, the same for all.

Each run is one file in runs/private-curves; finished ones are not repeated, and a killed one goes on at its last
checkpoint. Those that ended elsewhere come from benchmarks/results/finished.

    python -m benchmarks.measure.private_curves --data ./data [--workers 1] [--record]
    python -m benchmarks.measure.private_curves --plan               # what is left, and how long it takes
    python -m benchmarks.measure.private_curves --data ./data --small      # two rounds of each, to try it
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.common import finished, records
from benchmarks.common.arguments import names_of, new_parser
from benchmarks.common.resumable import run_all
from benchmarks.common.scored import say, scores_of
from benchmarks.evidence.rule import compare
from benchmarks.measure.curve_jobs.cells import ALGORITHMS, EPSILONS, Cell
from benchmarks.measure.curve_jobs.jobs import DELTA, FOLDER, SUBJECTS, WHAT, run

BASES = ("local-adamw", "fedavg")  # that FedAdamW is compared with, by seed


def main() -> None:
    args = parse()
    finished.restore(WHAT)
    subjects = args.only.split(",")
    cells = {name: cells_of(name, small=args.small) for name in subjects}
    if args.plan:
        print_plan(cells)
        return
    every = list(chain.from_iterable(cells.values()))
    run_job = partial(run, data=args.data.resolve())
    run_all(lambda: chain.from_iterable(map(Cell.missing, every)), run_job, args.workers, say)
    content = {
        **records.provenance(("transformers", "dp-accounting")),
        "delta": DELTA,
        "small": args.small,
        "subjects": {name: result_of(name, own) for name, own in cells.items()},
    }
    records.write(WHAT, "cpu", content, record=args.record)


def cells_of(subject: str, *, small: bool) -> list[Cell]:
    """Return the points of the curves of a subject."""
    return [Cell(subject, algorithm, epsilon, small) for epsilon in EPSILONS for algorithm in ALGORITHMS]


def result_of(subject: str, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return what the record keeps of a subject."""
    found = [cell.result() for cell in cells]
    of = SUBJECTS[subject]
    return {"title": of.title, "recipe": of.recipe, "settings": of.settings, "cells": found, "paired": pair(found)}


def pair(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare FedAdamW with the others at each epsilon, by seed."""
    scores = {(cell["algorithm"], cell["epsilon"]): scores_of(cell) for cell in cells}
    found = []
    for epsilon in dict.fromkeys(cell["epsilon"] for cell in cells):
        for base in BASES:
            paired = compare(scores["fedadamw", epsilon], scores[base, epsilon])
            found.append({"epsilon": epsilon, "base": base, **({} if paired is None else paired._asdict())})
    return found


def print_plan(cells: dict[str, list[Cell]]) -> None:
    """Print how many runs are left, and the core-hours that they take."""
    total = 0.0
    for name, own in cells.items():
        measured = [json.loads(file.read_text())["cpu_s"] for file in FOLDER.glob(f"{name}_*.json")]
        each = mean(measured) if measured else SUBJECTS[name].run_s
        left = sum(map(Cell.left, own))
        total += left * each / 3600
        known = f"{len(measured)} measured" if measured else "none measured yet"
        print(f"{name}: about {left} runs of {each:.0f} s ({known}): {left * each / 3600:.1f} core-hours")
    print(f"about {total:.1f} core-hours")


def parse() -> argparse.Namespace:
    """The options; a record has all runs in full."""
    parser = new_parser(__doc__, devices=("cpu",))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of glue-sst2")
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
