"""Plans the runs of a study: algorithms x settings given as lists x seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from fedadamw.algorithms import registry
from fedadamw.checkpoint import CheckpointError
from fedadamw.prepare.device import count_cores, uses_gpu
from fedadamw.prepare.simulation import check_settings
from fedadamw.report.run_files import RecordDict
from fedadamw.runner.folder import RunFolder, settings_digest
from fedadamw.runner.tracking import check_trackers
from fedadamw.settings.experiment import Experiment, list_settings_outside
from fedadamw.settings.load import build_experiment
from fedadamw.validation import InputError, check, check_one_of, suggest

MAX_RUNS = 10_000


@dataclass(frozen=True)
class Run:
    """One run of a study: its settings, and a label of those that vary."""

    experiment: Experiment
    label: Mapping[str, str]  # `algorithm` and each setting that varies -> its value in words
    parent: Path  # folder of the study's runs

    @cached_property
    def name(self) -> str:
        """Name of the run's folder: the same for the same settings, so that studies can share a run."""
        algorithm = self.experiment.algorithm_name
        return f"{algorithm}-seed{self.experiment.seed}-{settings_digest(self.experiment)[:10]}"

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.parent / self.name)

    @property
    def records(self) -> list[RecordDict]:
        """The records so far; none if the folder is damaged, which resuming the run reports."""
        try:
            return self.folder.records() if self.folder.started else []
        except CheckpointError:
            return []

    @property
    def done(self) -> bool:
        """Whether its last round is recorded."""
        return len(self.records) == self.experiment.training.rounds


def plan(
    recipe: str,
    algorithms: Sequence[str],
    seeds: Sequence[int],
    given: Sequence[tuple[str, Any]],
    parent: Path,
    jobs: int | None = None,
) -> list[Run]:
    """Return every run, seed by seed; raise InputError if the settings of one are wrong.

    given: (path, value); a list of values makes a run of each. A setting of `algorithm` holds for those that have it.
    jobs: how many will run at a time.
    """
    check_given(given, algorithms, "a comparison takes it from {option}")
    _check_count(algorithms, seeds, given)
    runs = []
    for seed in seeds:
        for name in algorithms:
            own = select_settings(name, given)
            for pairs in product(*(_alternatives(name, path, value) for path, value in own)):
                experiment = build_experiment(recipe, [("algorithm.name", name), *pairs, ("seed", seed)])
                varying = [(path, v) for (path, v), (_, value) in zip(pairs, own, strict=True) if v is not value]
                label = {"algorithm": name, **{path: words(v) for path, v in varying}}
                check_runnable(experiment)
                runs.append(Run(share_cores(experiment, jobs), label, parent))
    check_distinct(runs)
    return runs


def _check_count(algorithms: Sequence[str], seeds: Sequence[int], given: Sequence[tuple[str, Any]]) -> None:
    """Raise InputError if lists of values multiply to more than MAX_RUNS runs."""
    sizes = (prod(len(_alternatives(name, *pair)) for pair in select_settings(name, given)) for name in algorithms)
    count = len(seeds) * sum(sizes)
    check(count <= MAX_RUNS, f"the study would have {count:,} runs; use at most {MAX_RUNS:,}")


def check_runnable(experiment: Experiment) -> None:
    """Raise InputError for settings that are bound to fail, before the first process starts."""
    check_settings(experiment, remote=False)
    check_trackers(experiment.trackers)


def share_cores(experiment: Experiment, jobs: int | None = None) -> Experiment:
    """Return the experiment with its share of the cores, unless it sets a number of threads or runs on a GPU."""
    if experiment.threads is not None or uses_gpu(experiment):
        return experiment
    return experiment.model_copy(update={"threads": max(count_cores() // (jobs or count_cores()), 1)})


def choose_jobs(runs: Iterable[Run]) -> int:
    """Return how many runs to execute at a time: one on a GPU, else the cores divided by the threads of a run."""
    if any(uses_gpu(run.experiment) for run in runs):
        return 1
    return max(count_cores() // max((run.experiment.threads or 1 for run in runs), default=1), 1)


def words(value: Any) -> str:
    """Return a setting's value as short text that still differs from other values."""
    if isinstance(value, Mapping | list | tuple):
        return " ".join(words(v) for v in value)
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def _alternatives(algorithm: str, path: str, value: Any) -> list[tuple[str, Any]]:
    """Return (path, value) for each value of a list; a setting that is itself a list varies by a list of lists."""
    if not isinstance(value, list) or not value:
        return [(path, value)]
    if _is_list(algorithm, path) and not isinstance(value[0], list):
        return [(path, value)]
    return [(path, one) for one in value]


def select_single_values(given: Sequence[tuple[str, Any]], algorithms: Sequence[str]) -> list[tuple[str, Any]]:
    """Return the settings given as one value (a list, if the setting is one), not as alternatives."""

    def alone(path: str, value: Any) -> bool:
        return all(v is value for name in algorithms for _, v in _alternatives(name, path, value))

    return [(path, value) for path, value in given if alone(path, value)]


def check_single(given: Sequence[tuple[str, Any]], algorithms: Sequence[str], study: str) -> None:
    """Raise InputError if a setting is given as a list of values."""
    lists = [path for path, _ in given if path not in dict(select_single_values(given, algorithms))]
    check(not lists, f"{study} takes one value a setting, no lists ({', '.join(lists)})")


def _is_list(algorithm: str, path: str) -> bool:
    section, _, key = path.partition(".")
    if section == "algorithm":
        return isinstance(registry.settings_of(algorithm).get(key), tuple)
    return path == "trackers"


def select_settings(algorithm: str, given: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return those of the given settings that `algorithm` has."""
    known = registry.settings_of(algorithm)
    return [(path, v) for path, v in given if not path.startswith("algorithm.") or path.partition(".")[2] in known]


def check_distinct(runs: Sequence[Run]) -> None:
    """Raise InputError if two runs are the same: they would share a folder, or count as two seeds."""
    seen: dict[str, Run] = {}
    for run in runs:
        same = seen.setdefault(run.name, run)
        if same is not run:
            label, other = (" ".join(f"{k}={v}" for k, v in r.label.items()) for r in (run, same))
            raise InputError(f"two runs are the same: {other} and {label}, seed {run.experiment.seed}")


def check_given(given: Sequence[tuple[str, Any]], algorithms: Sequence[str], elsewhere: str) -> None:
    """Raise InputError if an algorithm is unknown or repeated, or if a setting belongs to none of them, is given twice,
    is a section, or has an option instead (`elsewhere`: a sentence with {option}).
    """
    for name in algorithms:
        check_one_of("algorithm", name, registry.ALGORITHMS)
    check(len(set(algorithms)) == len(algorithms), f"-a {','.join(algorithms)}: names one algorithm twice")
    paths = [path for path, _ in given]
    for path, value in given:
        check(paths.count(path) == 1, f"-s {path}: is given twice")
        check(not isinstance(value, Mapping), f"-s {path}: is a section; set one key of it, as {path}.key=value")
        if path in ("algorithm.name", "seed"):
            option = "-a" if path == "algorithm.name" else "--seeds"
            raise InputError(f"-s {path}: {elsewhere.format(option=option)}")
        if not any(select_settings(name, [(path, value)]) for name in algorithms):
            known = sorted({key for name in algorithms for key in registry.settings_of(name)})
            hint = suggest(path.partition(".")[2], [*known, *list_settings_outside("algorithm")], ".")
            raise InputError(f"{path} is no setting of {', '.join(algorithms)}{hint}")
