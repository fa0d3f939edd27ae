"""One run of private_curves: its settings, its name, and the file in which its result is kept."""

import hashlib
import json
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.common.records import ROOT
from benchmarks.evidence.rule import tail_score
from fedadamw.checkpoint import write_atomically
from fedadamw.engine.record import DivergedError
from fedadamw.report.metrics import find_evaluations, score
from fedadamw.runner.digest import settings_digest
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.manifest import commit
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load

FOLDER = ROOT / "runs" / "private-curves"
DELTA = 1e-5
ADAPTIVE = "adaptive"  # the learning rates of every algorithm that has none of its own
SMALL = ("training.rounds=2", "training.steps=2")


class Subject(NamedTuple):
    """What is learned, the same for all runs of a curve."""

    title: str
    recipe: str
    settings: tuple[str, ...]  # beside the recipe's
    data: str | None  # folder in the folder of data; None: comes with a package
    validation: float  # share of the training data that trials of learning rates and clips are scored on
    rates: Mapping[str, tuple[float, ...]]  # algorithm, or ADAPTIVE -> learning rates that are tried first
    run_s: float  # seconds of a run on one core, until one was measured


SUBJECTS = {
    "digits": Subject(
        "digits, small ViT",
        "digits",
        (
            "partition.kind=iid",
            "partition.clients=4",
            "training.clients_per_round=4",
            "training.rounds=30",
            "training.steps=10",
            "training.batch_size=64",
        ),
        None,
        0.25,
        MappingProxyType({ADAPTIVE: (1e-3, 3e-3), "fedavg": (0.1, 0.3)}),
        30,
    ),
    "sst2": Subject(
        "SST-2, MiniLM with LoRA",
        "small/sst2-minilm-lora",
        (
            "partition.clients=4",
            "training.clients_per_round=4",
            "training.rounds=10",
            "training.steps=5",
            "training.batch_size=32",
            "training.group_by_length=false",
            "training.evaluate_every=50",  # after the last round
            "lora.r=2",
        ),
        "glue-sst2",
        0.015,
        MappingProxyType({ADAPTIVE: (1e-3, 3e-3), "fedavg": (0.3, 1.0)}),
        60,
    ),
}


class Job(NamedTuple):
    """One run."""

    subject: str
    algorithm: str
    epsilon: float | None  # of the samples' privacy; None: none
    lr: float
    clip: float | None  # of the samples' gradients; None without privacy
    seed: int
    tuning: bool  # scored on held-out training data
    small: bool = False

    @property
    def name(self) -> str:
        """The name of its file; other settings of the subject give another name."""
        words = [self.subject, self.algorithm, f"epsilon{self.epsilon or 'none'}", f"lr{self.lr:g}"]
        words += [] if self.clip is None else [f"clip{self.clip:g}"]
        return "_".join([*words, f"{'tune' if self.tuning else 'seed'}{self.seed}", digest(self)])

    @property
    def file(self) -> Path:
        """Where its result is, once it is finished; it runs in the folder beside it."""
        return (FOLDER / "small" if self.small else FOLDER) / f"{self.name}.json"


def experiment(job: Job, data: Path | None = None) -> Experiment:
    """Return the settings of a run; `data` is the folder of the data sets' folders."""
    subject = SUBJECTS[job.subject]
    settings = [*subject.settings, *(SMALL if job.small else ())]
    if subject.data is not None:
        settings.append(f"data.source={subject.data if data is None else data / subject.data}")
    if job.epsilon is not None:
        settings += [f"privacy.epsilon={job.epsilon:g}", f"privacy.delta={DELTA:g}", f"privacy.clip={job.clip:g}"]
    own = [f"algorithm.name={job.algorithm}", f"training.lr={job.lr!r}", f"seed={job.seed}"]
    trial = [f"data.validation={subject.validation:g}"] if job.tuning else []
    return load(subject.recipe, [*settings, *own, *trial, "threads=1", "device=cpu", "checkpoint_every=5"])


@lru_cache(maxsize=10_000)
def digest(job: Job) -> str:
    """Return a digest of the settings that change numbers, where the data lie left out."""
    return hashlib.sha256(json.dumps(settings_digest(experiment(job))).encode()).hexdigest()[:8]


def run(job: Job, data: Path) -> None:
    """Run one training with one thread, or what is left of it, and write its result."""
    folder, error, begun = RunFolder(job.file.with_suffix("")), None, time.process_time()
    try:
        execute(experiment(job, data), folder, resume=True, report=False)
    except DivergedError as diverged:
        error = str(diverged)
    rounds = folder.records()
    evaluated = [rounds[i] for i in find_evaluations(rounds)]
    last = experiment(job).training.rounds
    found = None if error else tail_score([r["round"] for r in evaluated], [score(r) for r in evaluated], last)
    content = {
        **job._asdict(),
        "commit": commit(),
        "error": error,
        "score": None if found is None else round(100 * found, 4),  # points
        "spent": max((r["epsilon"] for r in rounds if r.get("epsilon") is not None), default=None),
        "cpu_s": round(time.process_time() - begun, 1),
    }
    write_atomically(job.file, (json.dumps(content) + "\n").encode())


def read(job: Job) -> dict[str, Any]:
    """Return the result of a run."""
    found: dict[str, Any] = json.loads(job.file.read_text())
    return found


def score_of(job: Job) -> float | None:
    """Return the score of a run that has ended, in points; None if it diverged."""
    found: float | None = read(job)["score"]
    return found


def say(job: Job) -> str:
    """Return the line that is printed when a run has ended."""
    result = read(job)
    told = "diverged" if result["score"] is None else f"{result['score']:.1f}"
    return f"{job.name}: {told} in {result['cpu_s']:.0f} s"
