"""`fedadamw.run` and `fedadamw.compare`: recipes from Python, as the commands of these names run them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedadamw.api.result import Comparison, Result
from fedadamw.api.session import AnyCallback, run_session
from fedadamw.prepare.simulation import prepare
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import build_experiment
from fedadamw.study import compare as study_of
from fedadamw.validation import check


def run(
    recipe: str | Path | Experiment,
    *,
    settings: Mapping[str, object] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    ranks: int = 1,
    callbacks: Iterable[AnyCallback] = (),
    quiet: bool = False,
) -> Result:
    """Run a recipe, by its name or as a YAML file, and return the trained model with its records.

    settings: by path, as `-s` sets them: {"training.rounds": 20}. A run is resumed with the recipe and settings that it
    began with, or with its own config.yaml as the recipe. The other arguments are those of `simulate`.
    """
    folder = None if out is None else RunFolder(Path(out))
    if isinstance(recipe, Experiment):
        check(not settings, "settings: give them in the experiment")
        experiment = recipe
    else:
        experiment = build_experiment(str(recipe), list((settings or {}).items()))
    if resume and folder is not None and folder.started:
        folder.check_settings(experiment)
    return run_session(experiment, prepare, out=out, resume=resume, ranks=ranks, callbacks=callbacks, quiet=quiet)


def compare(
    recipe: str | Path,
    algorithms: Sequence[str],
    *,
    seeds: int = 1,
    settings: Mapping[str, object] | None = None,
    out: str | Path,
    target: float | None = None,
    jobs: int | None = None,
    variants: Mapping[str, Mapping[str, object]] | None = None,
    quiet: bool = False,
) -> Comparison:
    """Run algorithms x seeds of a recipe in processes of their own, and return the results.

    settings: by path; a list of values makes a variant of each. target: the score that rounds and bytes are counted
    to. jobs: runs at a time. variants: settings that belong together, by name, such as {"waiting": {}, "buffered":
    {"training.aggregation": "buffered"}}; each is a variant of every algorithm. What is done in `out` is not run
    again, so the same call goes on after a stop. Algorithms that this process alone registered are unknown to the
    others: install them with an entry point.
    """
    check(not isinstance(algorithms, str), f"algorithms={algorithms!r}: give a list of names")
    overrides = list((settings or {}).items())
    named = {name: list(own.items()) for name, own in (variants or {}).items()}
    results = study_of.compare(
        str(recipe),
        list(algorithms),
        seeds,
        overrides,
        Path(out),
        target=target,
        jobs=jobs,
        variants=named,
        quiet=quiet,
    )
    return Comparison(results, Path(out))
