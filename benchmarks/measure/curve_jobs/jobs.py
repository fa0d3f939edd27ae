"""One run of private_curves: its settings, its name, and the file in which its result is kept."""

import hashlib
import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

import fedadamw
from benchmarks.common import finished
from benchmarks.common.digits_mlp import make_mlp, read_digits
from benchmarks.common.records import ROOT
from benchmarks.evidence.rule import tail_score
from fedadamw.checkpoint import write_atomically
from fedadamw.engine.record import DivergedError
from fedadamw.report.metrics import find_evaluations, score
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.manifest import commit
from fedadamw.settings.load import load

WHAT = "private-curves"
FOLDER = ROOT / finished.FOLDERS[WHAT]
DELTA = 1e-5
ADAPTIVE = "adaptive"  # the learning rates of every algorithm that has none of its own
SMALL = {"training.rounds": 2, "training.steps": 2}
CLIENTS, HIDDEN, TEST = 4, 64, 360  # of digits: clients, units of the network, digits of the test set
Settings = Mapping[str, object]  # by path


class Subject(NamedTuple):
    """What is learned, the same for all runs of a curve."""

    title: str
    recipe: str | None  # None: digits, by `fedadamw.simulate`
    settings: Settings  # beside the recipe's
    validation: float  # share of the training data that trials of learning rates and clips are scored on
    rates: Mapping[str, tuple[float, ...]]  # algorithm, or ADAPTIVE -> learning rates that are tried first
    run_s: float  # seconds of a run on one core, until one was measured


SUBJECTS = {
    "digits": Subject(
        "digits, network with 64 hidden units",
        None,
        {"training.rounds": 30, "training.steps": 10, "training.batch_size": 64, "training.evaluate_every": 1},
        0.25,
        MappingProxyType({ADAPTIVE: (3e-3, 1e-2), "fedavg": (0.3, 1.0)}),
        10,
    ),
    "sst2": Subject(
        "SST-2, MiniLM with LoRA on its last layer",
        "small/sst2-minilm-lora",
        {
            "data.max_length": 24,
            "partition.clients": 4,
            "training.clients_per_round": 4,
            "training.rounds": 6,
            "training.steps": 2,
            "training.batch_size": 256,
            "training.micro_batch": 64,
            "training.group_by_length": False,
            "training.evaluate_every": 50,  # after the last round
            "lora.r": 2,
            "lora.alpha": 1,  # the head, which is new, needs far longer steps than the adapters
            "lora.aggregate": "frozen-a",  # arXiv 2403.12313
            "lora.target_modules": r"'.*layer\.5\.attention\.self\.(query|value)'",
            "checkpoint_every": 1,
        },
        0.015,
        MappingProxyType({ADAPTIVE: (3e-2, 1e-1), "fedavg": (10.0, 30.0)}),
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

    @property
    def settings(self) -> dict[str, object]:
        """What differs from the recipe, but for where the data are."""
        found = {**SUBJECTS[self.subject].settings, **(SMALL if self.small else {}), "training.lr": self.lr}
        if self.epsilon is not None:
            found |= {"privacy.epsilon": self.epsilon, "privacy.delta": DELTA, "privacy.clip": self.clip}
        return {**found, "threads": 1}


def digest(job: Job) -> str:
    """Return a digest of the settings."""
    subject = SUBJECTS[job.subject]
    return hashlib.sha256(json.dumps([subject.recipe, subject.validation, job.settings]).encode()).hexdigest()[:8]


def run(job: Job, data: Path) -> None:
    """Run one training with one thread, or what is left of it, and write its result.

    data: the folder of the data sets' folders.
    """
    torch.set_num_threads(1)
    folder, error, begun = RunFolder(job.file.with_suffix("")), None, time.process_time()
    try:
        (train_digits if SUBJECTS[job.subject].recipe is None else train_texts)(job, folder, data)
    except DivergedError as diverged:
        error = str(diverged)
    rounds = folder.records()
    evaluated = [rounds[i] for i in find_evaluations(rounds)]
    found = None
    if error is None:
        found = tail_score([r["round"] for r in evaluated], [score(r) for r in evaluated], rounds[-1]["round"])
    content = {
        **job._asdict(),
        "commit": commit(),
        "error": error,
        "score": None if found is None else round(100 * found, 4),  # points
        "spent": max((spent for r in rounds if (spent := r.get("epsilon")) is not None), default=None),
        "cpu_s": round(time.process_time() - begun, 1),
    }
    write_atomically(job.file, (json.dumps(content) + "\n").encode())


def train_texts(job: Job, folder: RunFolder, data: Path) -> None:
    """Run a recipe on GLUE's SST-2."""
    subject = SUBJECTS[job.subject]
    settings = job.settings | {"algorithm.name": job.algorithm, "seed": job.seed, "device": "cpu"}
    settings |= {"data.source": data / "glue-sst2", "data.validation": subject.validation if job.tuning else 0.0}
    words = [f"{path}={value!r}" if isinstance(value, float) else f"{path}={value}" for path, value in settings.items()]
    execute(load(str(subject.recipe), words), folder, resume=True, report=False)


def train_digits(job: Job, folder: RunFolder, _data: Path) -> None:
    """Run on digits, of which each client has classes of its own mix."""
    pixels, labels = read_digits()
    order = np.random.default_rng((job.seed, 2)).permutation(len(labels))
    test, train = order[:TEST], order[TEST:]
    if job.tuning:
        held_out = int(SUBJECTS[job.subject].validation * len(train))
        test, train = train[:held_out], train[held_out:]
    fedadamw.simulate(
        partial(make_mlp, HIDDEN),
        (pixels[train], labels[train]),
        (pixels[test], labels[test]),
        fedadamw.partition.mix(labels[train], CLIENTS, seed=job.seed),
        metrics={"accuracy": lambda outputs, targets: float((outputs.argmax(1) == targets).float().mean())},
        algorithm=job.algorithm,
        seed=job.seed,
        device="cpu",
        settings=job.settings,
        out=folder.path,
        resume=True,
        quiet=True,
    )
