"""One run of asynchronous: its settings, its name, and the file in which its result is kept."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.common import finished
from benchmarks.common.clock import Clock
from benchmarks.common.records import ROOT
from benchmarks.evidence.rule import tail_score
from fedadamw.checkpoint import write_atomically
from fedadamw.engine.record import DivergedError
from fedadamw.prepare.simulation import Prepared, prepare
from fedadamw.report.metrics import find_evaluations, score
from fedadamw.report.run_files import RecordDict
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.manifest import commit
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load

WHAT = "asynchronous"
FOLDER = ROOT / finished.FOLDERS[WHAT]
AT_WORK = 10  # clients at any time, in every mode
NEVER = 1e9  # seconds
EVALUATIONS = 16  # of a run, about
SLOWEST = 0.2  # share of the devices whose part of the work is recorded
SPREAD = 10  # of the devices' speeds
Settings = Mapping[str, object]  # by path

DEVICES: Settings = {
    "devices.speed.kind": "log-normal",
    "devices.speed.spread": SPREAD,
    "devices.speed.samples_per_s": 10,
    "devices.speed.jitter": 0.1,
}
WAITING = "waiting"  # the mode whose end is the virtual time of the others
ROUNDS, DEADLINE = "training.rounds", "federation.deadline_s"
MODES: Mapping[str, Settings] = {
    WAITING: {"training.clients_per_round": AT_WORK, "federation.quorum": AT_WORK, DEADLINE: NEVER},
    "deadline": {"training.clients_per_round": 8, "federation.over_selection": 0.25},  # its deadline is the subject's
    "buffered": {"training.clients_per_round": AT_WORK, "training.aggregation": "buffered", "training.buffer": 5},
}


class Subject(NamedTuple):
    """What is learned, the same for all runs of a comparison."""

    title: str
    recipe: str
    settings: Settings  # beside the recipe's
    rounds: int  # of the mode that waits for all
    deadline_s: float  # of a round: two and a half times what the median device takes
    validation: float  # share of the training data that trials are scored on
    rates: tuple[float, ...]  # learning rates that are tried first
    data: str | None  # folder in the folder of data; None: comes with a package
    run_s: float  # seconds of a run on one core, until one was measured


SUBJECTS = {
    "digits": Subject(
        "small ViT, digits, Dirichlet 0.1",
        "digits",
        {"partition.concentration": 0.1, "training.steps": 5},
        16,
        17.5,
        0.25,
        (1e-3, 3e-3),
        None,
        25,
    ),
    "cifar10": Subject(
        "small ViT, CIFAR-10, Dirichlet 0.1",
        "small/cifar10-vit-dir0.1",
        {"data.max_test": 2000},
        20,
        50.0,
        0.04,
        (1e-3, 3e-3),
        "cifar10",
        75,
    ),
}
SMALL: Settings = {"training.steps": 2, ROUNDS: 2}


class Job(NamedTuple):
    """One run."""

    subject: str
    mode: str
    algorithm: str
    lr: float
    alpha: float | None  # None: of an algorithm that has none
    seed: int
    tuning: bool  # scored on held-out training data
    small: bool = False

    @property
    def name(self) -> str:
        """The name of its file; other settings of the subject give another name."""
        words = [self.subject, self.mode, self.algorithm, f"lr{self.lr:g}"]
        words += [] if self.alpha is None else [f"alpha{self.alpha:g}"]
        return "_".join([*words, f"{'tune' if self.tuning else 'seed'}{self.seed}", digest(self)])

    @property
    def file(self) -> Path:
        """Where its result is, once it is finished; it runs in the folder beside it."""
        return (FOLDER / "small" if self.small else FOLDER) / f"{self.name}.json"

    @property
    def settings(self) -> dict[str, object]:
        """What differs from the recipe, but for the number of rounds, and where the data are."""
        subject = SUBJECTS[self.subject]
        found = {**subject.settings, **DEVICES, **MODES[self.mode], "training.lr": self.lr, ROUNDS: subject.rounds}
        if self.mode == "deadline":
            found[DEADLINE] = subject.deadline_s
        if self.alpha is not None:
            found["algorithm.alpha"] = self.alpha
        found |= {"algorithm.name": self.algorithm, "data.validation": subject.validation if self.tuning else 0.0}
        return {**found, **(SMALL if self.small else {}), "threads": 1, "device": "cpu"}


def digest(job: Job) -> str:
    """Return a digest of the settings."""
    return hashlib.sha256(json.dumps([SUBJECTS[job.subject].recipe, job.settings]).encode()).hexdigest()[:8]


def run(job: Job, data: Path) -> None:
    """Run one training with one thread, or what is left of it, and write its result.

    data: the folder of the data sets' folders.
    """
    torch.set_num_threads(1)
    folder, error, begun = RunFolder(job.file.with_suffix("")), None, time.process_time()
    prepared = prepare(read_settings(job, data))
    waiting = read_settings(job._replace(mode=WAITING), data)
    end_s = clock_of(prepared, waiting).end_of(waiting.training.rounds)
    rounds = clock_of(prepared, prepared.experiment).rounds_within(end_s)
    length = {ROUNDS: rounds, "training.evaluate_every": max(1, rounds // EVALUATIONS)}
    try:
        execute(read_settings(job, data, length), folder, resume=True, report=False)
    except DivergedError as diverged:
        error = str(diverged)
    content = {
        **job._asdict(),
        "commit": commit(),
        "error": error,
        "end_s": round(end_s, 3),
        **describe_rounds(folder.records(), None if error else rounds),
        **describe_jobs(folder.path / "jobs.jsonl", prepared.fleet.samples_per_s),
        "cpu_s": round(time.process_time() - begun, 1),
    }
    write_atomically(job.file, (json.dumps(content) + "\n").encode())


def read_settings(job: Job, data: Path, others: Settings = MappingProxyType({})) -> Experiment:
    """Return the settings of a run, with `others` in place of its own."""
    subject = SUBJECTS[job.subject]
    source = {} if subject.data is None else {"data.source": data / subject.data}
    settings = {**job.settings, **source, "seed": job.seed, **others}
    words = [f"{path}={value!r}" if isinstance(value, float) else f"{path}={value}" for path, value in settings.items()]
    return load(subject.recipe, words)


def clock_of(prepared: Prepared, experiment: Experiment) -> Clock:
    """Return the clock of these settings, on the data and devices of `prepared`."""
    of = prepared.workspace, prepared.algorithm, prepared.task, prepared.partition
    return Clock(*of, experiment.training, experiment.federation, prepared.fleet)


def describe_rounds(records: Sequence[RecordDict], rounds: int | None) -> dict[str, Any]:
    """Return the score of a run of so many rounds, in points, its curve, and the share of time that clients waited.

    rounds: None if it diverged.
    """
    evaluated = [records[i] for i in find_evaluations(records)]
    scores = [score(record) for record in evaluated]
    found = None if rounds is None else tail_score([record["round"] for record in evaluated], scores, rounds)
    ends = [record["virtual_s"] for record in records]
    lengths = np.diff(ends, prepend=0.0)
    idle = [record["devices"]["idle"] for record in records]
    return {
        "rounds": len(records),
        "score": None if found is None else round(100 * found, 4),
        "curve": [[round(r["virtual_s"], 3), value] for r, value in zip(evaluated, scores, strict=True)],
        "idle": round(float(np.average(idle, weights=lengths)), 4) if records else None,
        "up_mb": round(sum(record["up_bytes"] for record in records) / 1e6, 3),
    }


def describe_jobs(path: Path, speeds: np.ndarray) -> dict[str, Any]:
    """Return how many jobs ended in which way, their staleness, and the part of the slowest devices in what counted.

    speeds: (N,) of the clients.
    """
    jobs = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    counted = [job for job in jobs if job["outcome"] == "counted"]
    slow = set(np.argsort(speeds)[: round(SLOWEST * len(speeds))].tolist())
    staleness = [job["staleness"] for job in counted]
    steps = sum(job["steps"] for job in counted)
    return {
        "jobs": dict(Counter(job["outcome"] for job in jobs)),
        "steps": steps,
        "staleness_mean": round(mean(staleness), 4) if counted else None,
        "staleness_max": max(staleness, default=None),
        "slowest": round(sum(job["steps"] for job in counted if job["client"] in slow) / steps, 4) if steps else None,
    }
