"""Which runs a study consists of: algorithms x settings given as lists x seeds."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from fedadamw import registry
from fedadamw.experiment import Experiment, assemble
from fedadamw.prepare import device_of
from fedadamw.run_folder import RunFolder, settings_digest
from fedadamw.validation import InputError, nearest, one_of

Pairs = tuple[tuple[str, Any], ...]  # (path, value)


@dataclass(frozen=True)
class Run:
    """One run of a study: its settings, and what sets it apart from the others."""

    experiment: Experiment
    label: Mapping[str, str]  # `algorithm` and each setting that varies -> its value in words
    parent: Path  # folder of the study's runs

    @property
    def name(self) -> str:
        """The same for the same settings, in whatever study: a run that two have in common is run once."""
        algorithm = self.experiment.algorithm["name"]
        return f"{algorithm}-seed{self.experiment.seed}-{settings_digest(self.experiment)[:10]}"

    @property
    def folder(self) -> RunFolder:
        """Where the run is."""
        return RunFolder(self.parent / self.name)

    @property
    def done(self) -> bool:
        """Whether its last round is recorded."""
        return self.folder.started and len(self.folder.records()) == self.experiment.training.rounds


def plan(
    recipe: str, algorithms: Sequence[str], seeds: Sequence[int], given: Sequence[tuple[str, Any]], parent: Path
) -> list[Run]:
    """Every run, seed by seed, so that a first picture is there early; InputError where one has wrong settings.

    given: (path, value); a list of values makes a run of each. A setting of `algorithm` holds for those that have it.
    """
    for name in algorithms:
        one_of("algorithm", name, registry.ALGORITHMS)
    _check_known(given, algorithms)
    runs = []
    for seed in seeds:
        for name in algorithms:
            own = [(path, value) for path, value in given if _has(name, path)]
            for pairs in product(*(_alternatives(name, path, value) for path, value in own)):
                experiment = assemble(recipe, [("algorithm.name", name), *pairs, ("seed", seed)])
                varying = [(path, v) for (path, v), (_, value) in zip(pairs, own, strict=True) if v is not value]
                label = {"algorithm": name, **{path: words(v) for path, v in varying}}
                runs.append(Run(one_thread(experiment), label, parent))
    _check_distinct(runs)
    return runs


def one_thread(experiment: Experiment) -> Experiment:
    """The experiment with one CPU thread, since independent runs share the cores; as it is, on a GPU."""
    alone = device_of(experiment).type != "cpu"
    return experiment if alone else experiment.model_copy(update={"threads": 1})


def workers_for(runs: Iterable[Run]) -> int:
    """How many runs at a time: one on a GPU, else one a core."""
    if any(device_of(run.experiment).type != "cpu" for run in runs):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def words(value: Any) -> str:
    """A setting's value, short."""
    if isinstance(value, Mapping | list | tuple):
        return " ".join(words(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _alternatives(algorithm: str, path: str, value: Any) -> list[tuple[str, Any]]:
    """(path, value) for each value of a list, or the one there is; a setting that is a list itself wants lists."""
    if not isinstance(value, list) or not value:
        return [(path, value)]
    if _is_list(algorithm, path) and not isinstance(value[0], list):
        return [(path, value)]
    return [(path, one) for one in value]


def _is_list(algorithm: str, path: str) -> bool:
    section, _, key = path.partition(".")
    if section == "algorithm":
        return isinstance(registry.settings_of(algorithm).get(key), tuple)
    return path == "trackers"


def _has(algorithm: str, path: str) -> bool:
    section, _, key = path.partition(".")
    return section != "algorithm" or key in registry.settings_of(algorithm)


def _check_distinct(runs: Sequence[Run]) -> None:
    """Raise InputError where two runs are the same: they would share a folder, or pass for two seeds."""
    seen: dict[str, Run] = {}
    for run in runs:
        same = seen.setdefault(run.name, run)
        if same is not run:
            label, other = (" ".join(f"{k}={v}" for k, v in r.label.items()) for r in (run, same))
            raise InputError(f"two runs are the same: {label} and {other}, seed {run.experiment.seed}")


def _check_known(given: Sequence[tuple[str, Any]], algorithms: Sequence[str]) -> None:
    for path, _ in given:
        if path in ("algorithm.name", "seed"):
            option = "-a" if path == "algorithm.name" else "--seeds"
            raise InputError(f"-s {path}: a comparison takes it from {option}")
        if not any(_has(name, path) for name in algorithms):
            known = sorted({key for name in algorithms for key in registry.settings_of(name)})
            key = path.partition(".")[2]
            raise InputError(f"{path} is no setting of {', '.join(algorithms)}{nearest(key, known)}")
