"""One run: its settings, its name, and the file in which its result is kept."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from benchmarks.evidence.variants import VARIANTS
from benchmarks.evidence.workloads import WORKLOADS
from fedadamw.runner.digest import settings_digest
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load
from fedadamw.validation import check

SMALL = ("training.rounds=4", "training.steps=2", "training.evaluate_every=1", "partition.clients=20")


class Job(NamedTuple):
    """One run."""

    workload: str
    variant: str
    lr: float
    seed: int
    tuning: bool  # on held-out training data
    small: bool = False  # a few steps, to see that everything works

    @property
    def name(self) -> str:
        """The name of its file; other settings of the workload give another name."""
        words = (self.workload, self.variant.replace(" ", "-"), f"lr{self.lr:g}", "tune" if self.tuning else "seed")
        return f"{'_'.join(words)}{self.seed}_{digest(self)}"


def experiment(job: Job, data: Path | None = None) -> Experiment:
    """Return the settings of a run; `data` is the folder of the data sets' folders.

    Raises InputError if it has no folder of the workload's data.
    """
    workload, variant = WORKLOADS[job.workload], VARIANTS[job.variant]
    settings = [
        *workload.settings,
        *(SMALL if job.small else ()),
        f"algorithm.name={variant.algorithm}",
        *variant.settings,
        f"training.lr={job.lr:g}",
        f"seed={job.seed}",
        *(workload.trials if job.tuning else ()),
        "threads=1",
        "device=cpu",
        "checkpoint_every=2",
    ]
    if workload.data is not None:
        folder = workload.data if data is None else data / workload.data
        check(data is None or Path(folder).is_dir(), f"{folder}: no such folder; {job.workload} needs it (--data)")
        settings.append(f"data.source={folder}")
    return load(workload.recipe, settings)


@lru_cache(maxsize=10_000)
def digest(job: Job) -> str:
    """Return a digest of the settings that change numbers, where the data lie left out."""
    found = settings_digest(experiment(job))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:8]


def rounds_of(name: str, *, small: bool = False) -> int:
    """Return the rounds of a workload's runs."""
    workload = WORKLOADS[name]
    settings = (*workload.settings, *(SMALL if small else ()))
    return load(workload.recipe, settings).training.rounds
