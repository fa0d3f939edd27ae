"""Which runs a study consists of: algorithms x settings given as lists x seeds."""

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

MOST_RUNS = 10_000


@dataclass(frozen=True)
class Run:
    """One run of a study: its settings, and what sets it apart from the others."""

    experiment: Experiment
    label: Mapping[str, str]  # `algorithm` and each setting that varies -> its value in words
    parent: Path  # folder of the study's runs

    @cached_property
    def name(self) -> str:
        """The same for the same settings, in whatever study: a run that two have in common is run once."""
        algorithm = self.experiment.algorithm_name
        return f"{algorithm}-seed{self.experiment.seed}-{settings_digest(self.experiment)[:10]}"

    @property
    def folder(self) -> RunFolder:
        """Where the run is."""
        return RunFolder(self.parent / self.name)

    @property
    def records(self) -> list[RecordDict]:
        """What its rounds have come to; nothing where the folder is damaged, which going on with the run reports."""
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
    """Every run, seed by seed; InputError where one has wrong settings.

    given: (path, value); a list of values makes a run of each. A setting of `algorithm` holds for those that have it.
    jobs: how many will run at a time.
    """
    check_given(given, algorithms, "a comparison takes it from {option}")
    _check_count(algorithms, seeds, given)
    runs = []
    for seed in seeds:
        for name in algorithms:
            own = those_of(name, given)
            for pairs in product(*(_alternatives(name, path, value) for path, value in own)):
                experiment = build_experiment(recipe, [("algorithm.name", name), *pairs, ("seed", seed)])
                varying = [(path, v) for (path, v), (_, value) in zip(pairs, own, strict=True) if v is not value]
                label = {"algorithm": name, **{path: words(v) for path, v in varying}}
                check_runnable(experiment)
                runs.append(Run(sharing(experiment, jobs), label, parent))
    check_distinct(runs)
    return runs


def _check_count(algorithms: Sequence[str], seeds: Sequence[int], given: Sequence[tuple[str, Any]]) -> None:
    """Raise InputError where lists of values multiply to more runs than anybody waits for."""
    sizes = (prod(len(_alternatives(name, *pair)) for pair in those_of(name, given)) for name in algorithms)
    count = len(seeds) * sum(sizes)
    check(count <= MOST_RUNS, f"the study would have {count:,} runs; use at most {MOST_RUNS:,}")


def check_runnable(experiment: Experiment) -> None:
    """Raise InputError where the settings can only fail, before the first of many processes starts."""
    check_settings(experiment, remote=False)
    check_trackers(experiment.trackers)


def sharing(experiment: Experiment, jobs: int | None = None) -> Experiment:
    """The experiment with its share of the cores, where it names no number of threads; as it is, on a GPU."""
    if experiment.threads is not None or uses_gpu(experiment):
        return experiment
    return experiment.model_copy(update={"threads": max(count_cores() // (jobs or count_cores()), 1)})


def jobs_for(runs: Iterable[Run]) -> int:
    """How many runs at a time: one on a GPU, else as many as the cores have room for their threads."""
    if any(uses_gpu(run.experiment) for run in runs):
        return 1
    return max(count_cores() // max((run.experiment.threads or 1 for run in runs), default=1), 1)


def words(value: Any) -> str:
    """A setting's value, as short as it can be told from others."""
    if isinstance(value, Mapping | list | tuple):
        return " ".join(words(v) for v in value)
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def _alternatives(algorithm: str, path: str, value: Any) -> list[tuple[str, Any]]:
    """(path, value) for each value of a list, or the one there is; a setting that is a list itself wants lists."""
    if not isinstance(value, list) or not value:
        return [(path, value)]
    if _is_list(algorithm, path) and not isinstance(value[0], list):
        return [(path, value)]
    return [(path, one) for one in value]


def single(given: Sequence[tuple[str, Any]], algorithms: Sequence[str]) -> list[tuple[str, Any]]:
    """The settings that are given as one value, which may be a list where the setting is one."""

    def alone(path: str, value: Any) -> bool:
        return all(v is value for name in algorithms for _, v in _alternatives(name, path, value))

    return [(path, value) for path, value in given if alone(path, value)]


def check_single(given: Sequence[tuple[str, Any]], algorithms: Sequence[str], study: str) -> None:
    """Raise InputError where a setting is given as a list of values."""
    lists = [path for path, _ in given if path not in dict(single(given, algorithms))]
    check(not lists, f"{study} takes one value a setting, no lists ({', '.join(lists)})")


def _is_list(algorithm: str, path: str) -> bool:
    section, _, key = path.partition(".")
    if section == "algorithm":
        return isinstance(registry.settings_of(algorithm).get(key), tuple)
    return path == "trackers"


def those_of(algorithm: str, given: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The settings that `algorithm` has."""
    known = registry.settings_of(algorithm)
    return [(path, v) for path, v in given if not path.startswith("algorithm.") or path.partition(".")[2] in known]


def check_distinct(runs: Sequence[Run]) -> None:
    """Raise InputError where two runs are the same: they would share a folder, or pass for two seeds."""
    seen: dict[str, Run] = {}
    for run in runs:
        same = seen.setdefault(run.name, run)
        if same is not run:
            label, other = (" ".join(f"{k}={v}" for k, v in r.label.items()) for r in (run, same))
            raise InputError(f"two runs are the same: {other} and {label}, seed {run.experiment.seed}")


def check_given(given: Sequence[tuple[str, Any]], algorithms: Sequence[str], elsewhere: str) -> None:
    """Raise InputError where an algorithm is unknown or twice there, where none of them has a setting, or where one is
    given twice, as a whole section, or belongs `elsewhere`, a sentence with an {option}.
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
        if not any(those_of(name, [(path, value)]) for name in algorithms):
            known = sorted({key for name in algorithms for key in registry.settings_of(name)})
            hint = suggest(path.partition(".")[2], [*known, *list_settings_outside("algorithm")], ".")
            raise InputError(f"{path} is no setting of {', '.join(algorithms)}{hint}")
