"""The runs of a study: algorithms x values of settings x seeds."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path

from fedadamw.algorithms import registry
from fedadamw.checkpoint import CheckpointError
from fedadamw.data.row_parts import count_cores
from fedadamw.prepare.checks import check_settings
from fedadamw.prepare.device import uses_gpu
from fedadamw.report.run_files import RecordDict
from fedadamw.runner.digest import settings_digest
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.tracking import check_trackers
from fedadamw.settings.experiment import Experiment, list_settings_outside
from fedadamw.settings.load import Override, build_experiment, parse_override
from fedadamw.validation import InputError, check, check_one_of, shorten, suggest

Overrides = Sequence[Override]  # a value may be a list of values, for a variant of each
MAX_RUNS = 10_000
MAPPINGS = ("devices.classes",)  # settings whose value has names of the user's own


@dataclass(frozen=True)
class Run:
    """One run of a study."""

    experiment: Experiment
    label: Mapping[str, str]  # `algorithm` and each varied setting -> its value as text
    parent: Path  # folder of the study's runs

    @cached_property
    def name(self) -> str:
        """Name of its folder: the same for the same settings, so that a run of two studies is run once."""
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
        """Whether its last round is recorded, which a budget of privacy may have made an earlier one."""
        return len(self.records) == self.experiment.training.rounds or bool(self.records and self.folder.ended)


def plan(
    recipe: str,
    algorithms: Sequence[str],
    seeds: Sequence[int],
    overrides: Overrides,
    parent: Path,
    jobs: int | None = None,
    variants: Mapping[str, Overrides] | None = None,
) -> list[Run]:
    """Return every run, seed by seed; raises InputError if any has wrong settings.

    overrides: settings in `algorithm` hold for the algorithms that have them.
    jobs: runs at a time, which share the cores.
    variants: settings that belong together, by name, which take the place of `overrides`; each of every algorithm.
    """
    named = {name: _join(name, overrides, settings) for name, settings in (variants or {"": ()}).items()}
    for settings in named.values():
        check_overrides(settings, algorithms, "a comparison takes it from {option}")
    _check_count(algorithms, seeds, list(named.values()))
    runs = []
    for seed in seeds:
        for name, (variant, joined) in product(algorithms, named.items()):
            settings = select_settings(name, joined)
            for values in product(*(_expand(name, path, value) for path, value in settings)):
                experiment = build_experiment(recipe, [("algorithm.name", name), *values, ("seed", seed)])
                check_runnable(experiment)
                label = _label(name, settings, values)
                label = {"algorithm": name, "part": variant, **label} if variant else label
                runs.append(Run(limit_threads(experiment, jobs), label, parent))
    check_distinct(runs)
    return runs


def parse_variant(text: str) -> tuple[str, list[Override]]:
    """Return the name and the settings of a variant that is given as `NAME: key.path=value key.path=value`.

    A value with a blank is in quotes. Without settings, `NAME:` is the study as it is otherwise.
    """
    name, colon, settings = text.partition(":")
    example = "for example 'buffered: training.aggregation=buffered training.buffer=5'"
    check(bool(colon and name.strip()), f"--variant {shorten(text)}: give a name, a colon and settings, {example}")
    try:
        parts = shlex.split(settings)
    except ValueError as error:
        raise InputError(f"--variant {shorten(text)}: {error}") from None
    return name.strip(), [parse_override(part) for part in parts]


def parse_variants(texts: Iterable[str]) -> dict[str, list[Override]]:
    """Return settings by name, see parse_variant; raises InputError for a name that is given twice."""
    pairs = list(map(parse_variant, texts))
    names = [name for name, _ in pairs]
    for name in names:
        check(names.count(name) == 1, f"--variant {name}: is given twice")
    return dict(pairs)


def _join(name: str, overrides: Overrides, settings: Overrides) -> list[Override]:
    """Return the overrides with a variant's own settings in their place; InputError for one with a list of values."""
    own = [path for path, _ in settings]
    for path, value in overrides:
        listed = path in own and isinstance(value, list)
        check(not listed, f"-s {path}: has a list of values, and the variant {name} sets it too; leave one out")
    return [*((path, value) for path, value in overrides if path not in own), *settings]


def _label(algorithm: str, settings: Overrides, values: Overrides) -> dict[str, str]:
    """Return the algorithm and those `settings` of which `values` holds one of several values."""
    varied = [(path, value) for (path, value), (_, given) in zip(values, settings, strict=True) if value is not given]
    return {"algorithm": algorithm, **{path: format_value(value) for path, value in varied}}


def _check_count(algorithms: Sequence[str], seeds: Sequence[int], variants: Sequence[Overrides]) -> None:
    """Raise InputError if there would be too many runs."""
    pairs = product(algorithms, variants)
    sizes = (prod(len(_expand(name, *pair)) for pair in select_settings(name, settings)) for name, settings in pairs)
    count = len(seeds) * sum(sizes)
    check(count <= MAX_RUNS, f"the study would have {count:,} runs; use at most {MAX_RUNS:,}")


def check_runnable(experiment: Experiment) -> None:
    """Raise InputError if a run with these settings can only fail."""
    check_settings(experiment, remote=False)
    check_trackers(experiment.trackers)


def limit_threads(experiment: Experiment, jobs: int | None = None) -> Experiment:
    """Return the experiment with its share of the cores as `threads`; unchanged if that is set, or on a GPU."""
    if experiment.threads is not None or uses_gpu(experiment):
        return experiment
    return experiment.model_copy(update={"threads": max(count_cores() // (jobs or count_cores()), 1)})


def default_jobs(runs: Iterable[Run]) -> int:
    """Return how many runs to start at a time: one on a GPU, else as many as there are cores for their threads."""
    if any(uses_gpu(run.experiment) for run in runs):
        return 1
    return max(count_cores() // max((run.experiment.threads or 1 for run in runs), default=1), 1)


def format_value(value: object) -> str:
    """Format a setting's value, as short as is exact."""
    if isinstance(value, Mapping):
        return " ".join(f"{key} {format_value(v)}" for key, v in value.items())
    if isinstance(value, list | tuple):
        return " ".join(format_value(v) for v in value)
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def _expand(algorithm: str, path: str, value: object) -> list[Override]:
    """Return (path, value) for each value of a list; a setting that is itself a list takes a list of lists."""
    if not isinstance(value, list) or not value:
        return [(path, value)]
    if _is_list(algorithm, path) and not isinstance(value[0], list):
        return [(path, value)]
    return [(path, one) for one in value]


def select_single(overrides: Overrides, algorithms: Sequence[str]) -> list[Override]:
    """Return the overrides with one value, which is a list if the setting is one."""

    def is_single(path: str, value: object) -> bool:
        return all(v is value for name in algorithms for _, v in _expand(name, path, value))

    return [(path, value) for path, value in overrides if is_single(path, value)]


def check_single(overrides: Overrides, algorithms: Sequence[str], study: str) -> None:
    """Raise InputError if a setting has a list of values."""
    lists = [path for path, _ in overrides if path not in dict(select_single(overrides, algorithms))]
    check(not lists, f"{study} takes one value per setting, no lists ({', '.join(lists)})")


def _is_list(algorithm: str, path: str) -> bool:
    section, _, key = path.partition(".")
    if section == "algorithm":
        return isinstance(registry.settings_of(algorithm).get(key), tuple)
    return path in ("trackers", "personal.parameters")


def select_settings(algorithm: str, overrides: Overrides) -> list[Override]:
    """Return the overrides of settings that `algorithm` has."""
    known = registry.settings_of(algorithm)
    return [(path, v) for path, v in overrides if not path.startswith("algorithm.") or path.partition(".")[2] in known]


def check_distinct(runs: Sequence[Run]) -> None:
    """Raise InputError if two runs are the same: they would share a folder, or be counted as two seeds."""
    seen: dict[str, Run] = {}
    for run in runs:
        same = seen.setdefault(run.name, run)
        if same is not run:
            label, other = (" ".join(f"{k}={v}" for k, v in r.label.items()) for r in (run, same))
            raise InputError(f"two runs are the same: {other} and {label}, seed {run.experiment.seed}")


def check_overrides(overrides: Overrides, algorithms: Sequence[str], message: str) -> None:
    """Raise InputError for unknown or repeated algorithms, and for overrides that a study cannot take.

    message: for the algorithm's name and the seed, which have their own {option}.
    """
    for name in algorithms:
        check_one_of("algorithm", name, registry.ALGORITHMS)
        check(
            name not in registry.REGISTERED,
            f"algorithm {name!r} is registered in this process, but each run of a study is a process of its own: "
            "let its package name it in an entry point (docs/adding-an-algorithm.md)",
        )
    check(len(set(algorithms)) == len(algorithms), f"-a {','.join(algorithms)}: names one algorithm twice")
    paths = [path for path, _ in overrides]
    for path, value in overrides:
        check(paths.count(path) == 1, f"-s {path}: is given twice")
        section = isinstance(value, Mapping) and path not in MAPPINGS
        check(not section, f"-s {path}: is a section; set one key of it, as {path}.key=value")
        if path in ("algorithm.name", "seed"):
            option = "-a" if path == "algorithm.name" else "--seeds"
            raise InputError(f"-s {path}: {message.format(option=option)}")
        if not any(select_settings(name, [(path, value)]) for name in algorithms):
            known = sorted({key for name in algorithms for key in registry.settings_of(name)})
            hint = suggest(path.partition(".")[2], [*known, *list_settings_outside("algorithm")], ".")
            raise InputError(f"{path} is not a setting of {', '.join(algorithms)}{hint}")
