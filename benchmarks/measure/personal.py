"""Compare personal parameters with one global model by what clients score on their own held-out samples.

At Dirichlet 0.1: a personal head for a ViT on digits and on CIFAR-10, and personal norms (FedBN) for a ResNet with
BatchNorm on CIFAR-10. The final model of each is also tuned for every client by ten local steps. Learning rates, seeds,
scores and intervals follow benchmarks/evidence/rule.py: each variant is tuned with seeds that are not reported; there
are five seeds, then one more at a time until the 95% interval of the paired difference is narrower than two points, or
ten are there.

Each run is one file in runs/personal; finished ones are not repeated, and a killed one goes on at its last checkpoint.

    python -m benchmarks.measure.personal --data ./data [--workers 1] [--record]
    python -m benchmarks.measure.personal --data ./data --small      # two rounds of each, to try it
"""

import argparse
import json
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.common import records
from benchmarks.common.arguments import names_of, new_parser
from benchmarks.common.records import ROOT
from benchmarks.common.resumable import run_all
from benchmarks.evidence.rule import (
    FIRST_SEED,
    TUNING_SEEDS,
    Tried,
    best_rate,
    compare,
    next_trials,
    seeds_wanted,
    tail_score,
)
from benchmarks.evidence.workloads import RUNGS
from fedadamw.checkpoint import write_atomically
from fedadamw.engine.record import DivergedError
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.manifest import commit, device_name
from fedadamw.settings.load import load

WHAT, FOLDER = "personal", ROOT / "runs" / "personal"
GLOBAL, MOST = "global", 10
FIRST_RATES = (3e-4, 1e-3, 3e-3)  # learning rates that are tried first
HELD_OUT = 0.2  # of each client's samples
EVERY = 2  # rounds, in which all clients are evaluated
FINETUNE = 10  # local steps of each client after the last round
SMALL = ("training.rounds=2", "training.steps=2", "training.clients_per_round=2")


class Workload(NamedTuple):
    """One comparison: a recipe, and what is personal in the other variant."""

    title: str
    recipe: str
    settings: tuple[str, ...]
    personal: str  # the variant's name
    parameters: str  # patterns of the personal parameters


WORKLOADS = {
    "digits": Workload(
        "small ViT, digits, Dirichlet 0.1",
        "digits",
        ("partition.concentration=0.1", "training.rounds=40"),
        "personal head",
        "classifier.*",
    ),
    "vit": Workload("ViT, CIFAR-10, Dirichlet 0.1", "small/cifar10-vit-dir0.1", (), "personal head", "classifier.*"),
    "resnet": Workload(
        "ResNet with BatchNorm, CIFAR-10, Dirichlet 0.1",
        "small/cifar10-resnet-dir0.1",
        ("model.norm=batch",),
        "personal norms",
        "*.normalization.*",
    ),
}


class Job(NamedTuple):
    """One run."""

    workload: str
    variant: str
    lr: float
    seed: int
    small: bool = False

    @property
    def folder(self) -> Path:
        """Where it runs; its result is the file beside it."""
        name = f"{self.workload}-{self.variant.replace(' ', '-')}-lr{self.lr:g}-seed{self.seed}"
        return (FOLDER / "small" if self.small else FOLDER) / name

    @property
    def file(self) -> Path:
        """Where its result is, once it is finished."""
        return self.folder.with_name(f"{self.folder.name}.json")

    def settings(self, data: Path) -> list[str]:
        """What differs from the recipe."""
        workload = WORKLOADS[self.workload]
        source = [f"data.source={data / 'cifar10'}"] if "cifar10" in workload.recipe else []
        personal = [] if self.variant == GLOBAL else [f"personal.parameters=['{workload.parameters}']"]
        return [
            *workload.settings,
            *source,
            *personal,
            f"partition.held_out={HELD_OUT}",
            f"training.client_evaluation={EVERY}",
            f"personal.finetune={FINETUNE}",
            "training.evaluate_every=1000",  # the test set after the last round only
            f"training.lr={self.lr!r}",
            f"seed={self.seed}",
            "threads=1",
            "device=cpu",
            *(SMALL if self.small else ()),
        ]


def run(job: Job, data: Path) -> None:
    """Run one training with one thread, or what is left of it, and write its result."""
    folder, error = RunFolder(job.folder), None
    try:
        execute(load(WORKLOADS[job.workload].recipe, job.settings(data)), folder, resume=True, report=False)
    except DivergedError as diverged:
        error = str(diverged)
    rounds = folder.records()
    evaluated = [record for record in rounds if record.get("clients_mean") is not None]
    kept = {key: [record[key] for record in evaluated] for key in KEPT}  # type: ignore[literal-required]
    content = {"job": job._asdict(), "commit": commit(), "error": error, "rounds": len(rounds), **kept}
    last = rounds[-1] if rounds else {}  # none if it diverged in its first round
    content["tuned"] = last.get("tuned")  # the scores after the last round of the models tuned for each client
    write_atomically(job.file, (json.dumps(content) + "\n").encode())


KEPT = ("round", "clients_mean", "clients_weighted", "clients_std", "clients_worst_decile", "up_bytes")


def tail(result: dict[str, Any], key: str = "clients_mean") -> float | None:
    """Return the mean over the last tenth of the rounds, in points; None if the run diverged."""
    if result["error"] is not None:
        return None
    score = tail_score(result["round"], result[key], result["rounds"])
    return None if score is None else 100 * score


class Comparison:
    """What is known of a workload: the trials of its learning rates, and its reported runs."""

    def __init__(self, name: str, *, small: bool) -> None:
        self.name, self.small = name, small
        self.variants = (GLOBAL, WORKLOADS[name].personal)

    def tried(self, variant: str) -> Tried:
        """Return the scores of the runs that choose the learning rate, by rate and seed."""
        jobs = (Job(self.name, variant, lr, seed, self.small) for lr in RUNGS for seed in TUNING_SEEDS)
        return {(job.lr, job.seed): score_of(job) for job in jobs if job.file.exists()}

    def trials(self, variant: str) -> list[Job]:
        """Return the runs that choosing the learning rate still needs."""
        if self.small:
            wanted = [] if self.tried(variant) else [(FIRST_RATES[1], TUNING_SEEDS[0])]
        else:
            wanted = next_trials(self.tried(variant), FIRST_RATES, RUNGS)
        return [Job(self.name, variant, lr, seed, self.small) for lr, seed in wanted]

    def rate(self, variant: str) -> float | None:
        """Return the best learning rate; None before all are tried, or if all diverged."""
        return None if self.trials(variant) else best_rate(self.tried(variant))

    def reported(self, variant: str) -> dict[int, Job]:
        """Return the reported runs that have ended, by seed."""
        lr = self.rate(variant)
        seeds = range(FIRST_SEED, FIRST_SEED + MOST) if lr is not None else ()
        jobs = (Job(self.name, variant, lr, seed, self.small) for seed in seeds if lr is not None)
        return {job.seed: job for job in jobs if job.file.exists()}

    def scores(self, variant: str) -> dict[int, float]:
        """Return the scores by seed, in points, of runs that did not diverge."""
        found = {seed: score_of(job) for seed, job in self.reported(variant).items()}
        return {seed: score for seed, score in found.items() if score is not None}

    def missing(self) -> Iterator[Job]:
        """Yield the runs that can start now."""
        for variant in self.variants:
            yield from self.trials(variant)
        chosen = {variant: lr for variant in self.variants if (lr := self.rate(variant)) is not None}
        if len(chosen) < len(self.variants):
            return
        count = 1 if self.small else seeds_wanted(*(self.scores(v) for v in reversed(self.variants)), most=MOST)
        for seed in range(FIRST_SEED, FIRST_SEED + count):
            for variant, lr in chosen.items():
                job = Job(self.name, variant, lr, seed, self.small)
                if not job.file.exists():
                    yield job

    def result(self) -> dict[str, Any]:
        """Return what the record keeps."""
        paired = compare(self.scores(self.variants[1]), self.scores(GLOBAL))
        variants = {
            variant: {
                "lr": self.rate(variant),
                "trials": [[lr, seed, score] for (lr, seed), score in self.tried(variant).items()],
                "runs": [read(job) for job in self.reported(variant).values()],
            }
            for variant in self.variants
        }
        workload = WORKLOADS[self.name]
        return {**workload._asdict(), "variants": variants, "paired": None if paired is None else paired._asdict()}


def read(job: Job) -> dict[str, Any]:
    """Return the result of a run."""
    found: dict[str, Any] = json.loads(job.file.read_text())
    return found


def score_of(job: Job) -> float | None:
    """Return the score of a run that has ended, in points; None if it diverged."""
    return tail(read(job))


def say(job: Job) -> str:
    """Return the line that is printed when a run has ended."""
    score = score_of(job)
    return f"{job.folder.name}: {'diverged' if score is None else f'{score:.1f}'}"


def main() -> None:
    args = parse()
    comparisons = [Comparison(name, small=args.small) for name in args.only.split(",")]
    run_job = partial(run, data=args.data.resolve())
    run_all(lambda: chain.from_iterable(map(Comparison.missing, comparisons)), run_job, args.workers, say)
    content = {
        "commit": commit(),
        "device": device_name(torch.device("cpu")),
        "held_out": HELD_OUT,
        "finetune": FINETUNE,
        "small": args.small,
        "workloads": {comparison.name: comparison.result() for comparison in comparisons},
    }
    records.write(WHAT, "cpu", content, record=args.record)


def parse() -> argparse.Namespace:
    """The options; a record has all runs in full."""
    parser = new_parser(__doc__, devices=("cpu",))
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of cifar10")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, of one thread each")
    known = names_of(WORKLOADS)
    parser.add_argument(
        "--only", type=known, default=",".join(WORKLOADS), metavar="NAME,...", help=f"of {', '.join(WORKLOADS)}"
    )
    parser.add_argument("--small", action="store_true", help="two rounds and one seed of each")
    args = parser.parse_args()
    if args.record and (args.small or args.only != ",".join(WORKLOADS)):
        parser.error("a record has all runs in full: --record excludes --small and --only")
    return args


if __name__ == "__main__":
    main()
