"""Tune SmolLM2-135M on SST-2 as questions and answers: FedAdamW, Local AdamW, FedAvg and the untuned model.

The recipe small/instruct-smollm2 at Dirichlet 0.1 and 0.8, three seeds. Each algorithm's learning rate is chosen at
each concentration, with a seed that is not reported, by exact match on 100 questions held out of the training set, from
three and, as long as the best is at an end, the next one; what is reported is measured after the last round, on 200
questions of SST-2's validation split. All is in float32, which every CPU computes fast.

Each run is one file in runs/instruct; finished ones are not repeated, and a killed one goes on at its last checkpoint.
Those that ended elsewhere come from benchmarks/results/finished.

    python -m benchmarks.measure.instruct --data ./data/glue-sst2 [--device cuda] [--record]
    python -m benchmarks.measure.instruct --data ./data/glue-sst2 --small      # two rounds of one setting, to try it
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.common import finished, records
from benchmarks.common.arguments import new_parser
from benchmarks.common.processes import run_again
from benchmarks.common.records import ROOT
from benchmarks.evidence.workloads import RUNGS
from fedadamw.checkpoint import write_atomically
from fedadamw.prepare.simulation import prepare
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.manifest import commit, device_name
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load
from fedadamw.validation import InputError

WHAT, RECIPE = "instruct", "small/instruct-smollm2"
CONCENTRATIONS = (0.1, 0.8)
SEEDS, TUNING_SEED = (1, 2, 3), 0
GRIDS = {  # learning rates that are tried first
    "fedadamw": (3e-4, 1e-3, 3e-3),
    "local-adamw": (3e-4, 1e-3, 3e-3),
    "fedavg": (0.03, 0.1, 0.3),
}
QUESTIONS = {"tune": 100, "test": 200}  # that are answered
VALIDATION = 0.0015  # of the training set, to tune on: 101 questions; all of them are scored, so more take long
SMALL = ["training.steps=2", "training.clients_per_round=2", "data.max_train=2000"]
UNTUNED = "untuned"
FOLDER = ROOT / finished.FOLDERS[WHAT]


class Job(NamedTuple):
    """One run."""

    part: str  # tune or test
    algorithm: str  # or UNTUNED
    concentration: float
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """Of its file and folder."""
        return f"{self.part}-{self.algorithm}-dir{self.concentration:g}-lr{self.lr:g}-seed{self.seed}"

    def settings(self, args: argparse.Namespace) -> list[str]:
        """What differs from the recipe."""
        rounds = 2 if args.small else load(RECIPE).training.rounds
        count = 8 if args.small else QUESTIONS[self.part]
        algorithm = "fedadamw" if self.algorithm == UNTUNED else self.algorithm
        settings = [
            f"algorithm={algorithm}",
            f"data.source={args.data}",
            "data.config=null",
            f"device={args.device}",
            f"partition.concentration={self.concentration}",
            f"training.lr={self.lr}",
            f"training.rounds={rounds}",
            f"training.evaluate_every={rounds}",
            f"seed={self.seed}",
            "model.dtype=float32",
            "threads=1",
            f"data.answers={count}",
            f"data.max_test={max(count, 8)}",
        ]
        settings += SMALL if args.small else []
        return [*settings, f"data.validation={VALIDATION}"] if self.part == "tune" else settings


def main() -> None:
    args = parse()
    if args.one:
        print(json.dumps(measure(Job(*json.loads(args.one)), args)))
        return
    finished.restore(WHAT)
    results: dict[str, Any] = {UNTUNED: run(Job("test", UNTUNED, 0.1, 1.0, 0), args)}
    for concentration in CONCENTRATIONS[:1] if args.small else CONCENTRATIONS:
        for algorithm in GRIDS:
            results[f"{algorithm}, Dirichlet {concentration:g}"] = compare(algorithm, concentration, args)
    content = {
        "commit": commit(),
        "device": device_name(torch.device(args.device)),
        "small": args.small,
        "settings": load(RECIPE).model_dump(mode="json"),
        "results": results,
    }
    records.write(WHAT, args.device, content, record=args.record)


def parse() -> argparse.Namespace:
    """The options; a record has all runs in full."""
    parser = new_parser(__doc__)
    parser.add_argument("--data", default="./data/glue-sst2", help="a folder of SST-2's Parquet files")
    parser.add_argument("--small", action="store_true", help="two rounds, one seed, a few questions")
    parser.add_argument("--one", metavar="JOB", help="run this job in this process")
    args = parser.parse_args()
    if args.record and args.small:
        parser.error("a record has all runs in full: --record excludes --small")
    return args


def compare(algorithm: str, concentration: float, args: argparse.Namespace) -> dict[str, Any]:
    """Choose the learning rate of an algorithm, then run it with each seed."""
    tuned = tune(algorithm, concentration, args)
    best = best_of(tuned)
    runs = [run(Job("test", algorithm, concentration, best, seed), args) for seed in seeds(args)]
    return {"tuned": {f"{lr:g}": tuned[lr] for lr in sorted(tuned)}, "lr": best, "runs": runs}


def tune(algorithm: str, concentration: float, args: argparse.Namespace) -> dict[float, dict[str, Any]]:
    """Return the results of the learning rates that were tried."""

    def trial(lr: float) -> dict[str, Any]:
        return run(Job("tune", algorithm, concentration, lr, TUNING_SEED), args)

    if args.small:
        return {lr: trial(lr) for lr in GRIDS[algorithm][1:2]}
    tuned = {lr: trial(lr) for lr in GRIDS[algorithm]}
    while (lr := rate_beyond(tuned)) is not None:
        tuned[lr] = trial(lr)
    return tuned


def best_of(tuned: Mapping[float, Mapping[str, Any]]) -> float:
    """Return the learning rate with the most exact answers; of equals, that with the lowest loss."""
    return max(tuned, key=lambda lr: (tuned[lr]["exact-match"], -tuned[lr]["loss"]))


def rate_beyond(tuned: Mapping[float, Mapping[str, Any]]) -> float | None:
    """Return a neighbour of the best learning rate that was not tried; None if both were."""
    place = RUNGS.index(best_of(tuned))
    return next((lr for lr in RUNGS[max(place - 1, 0) : place + 2] if lr not in tuned), None)


def seeds(args: argparse.Namespace) -> tuple[int, ...]:
    """The seeds to report."""
    return SEEDS[:1] if args.small else SEEDS


def run(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """Run a job in a process of its own, unless its result is there already."""
    folder = FOLDER / "small" if args.small else FOLDER
    path = folder / f"{job.name}.json"
    if not path.is_file():
        passed = ["--device", args.device, "--data", str(Path(args.data).resolve()), *["--small"] * args.small]
        result = run_again(__file__, [*passed, "--one", json.dumps(job)])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    found: dict[str, Any] = json.loads(path.read_text())
    print(f"{job.name:44} {found['exact-match']:7.1%} exact, {found['total_s']:6.0f} s", flush=True)
    return found


def measure(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """Run a job in this process; return its scores on the held-out questions, and its time in seconds."""
    start = time.perf_counter()
    try:
        experiment = load(RECIPE, job.settings(args))
        scores = evaluate_untuned(experiment) if job.algorithm == UNTUNED else train(experiment, job, args)
    except InputError as error:
        raise SystemExit(str(error)) from None
    return {"job": job._asdict(), **scores, "total_s": round(time.perf_counter() - start, 1)}


def evaluate_untuned(experiment: Experiment) -> dict[str, float]:
    """The scores of the model before any training."""
    loss, metrics = prepare(experiment).simulation().evaluate()
    return {"loss": loss, **metrics}


def train(experiment: Experiment, job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """The scores after the last round; goes on with a run that was stopped."""
    folder = RunFolder((FOLDER / "small" if args.small else FOLDER) / job.name)
    execute(experiment, folder, resume=folder.started, report=False)
    last = folder.records()[-1]
    return {"loss": last["test_loss"], **(last["test_metrics"] or {}), "up_bytes": last["up_bytes"]}


if __name__ == "__main__":
    main()
