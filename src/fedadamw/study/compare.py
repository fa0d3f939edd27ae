"""`fedadamw compare`: algorithms x settings x seeds of one recipe, side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedadamw.checkpoint import write_atomically
from fedadamw.report import comparison
from fedadamw.run_folder import RunFolder
from fedadamw.study.plan import Run, plan, workers_for
from fedadamw.study.results import Results, collect, markdown, write
from fedadamw.study.show import Show
from fedadamw.study.workers import Ended, Workers, run_all

RUNS = "runs"


def compare(
    recipe: str,
    algorithms: Sequence[str],
    seeds: int,
    given: Sequence[tuple[str, Any]],
    out: Path,
    *,
    target: float | None = None,
    quiet: bool = False,
) -> Results:
    """Run what is not done yet in `out`, then write results.json, table.md, curves.png and report.html there.

    given: (path, value) of settings; a list of values makes a variant of each. The same call goes on after a stop.
    """
    runs = plan(recipe, algorithms, range(seeds), given, out / RUNS)
    with RunFolder(out).locked():
        ended = run_here(runs, quiet=quiet)
        results = collect(recipe, runs, ended, target)
        save(results, out)
    return results


def run_here(runs: Sequence[Run], *, quiet: bool) -> list[Ended]:
    """Every run that is not done yet, as many at a time as the machine has cores."""
    with Show(runs, quiet=quiet) as show, Workers(workers_for(runs)) as workers:
        return run_all(runs, workers, show)


def save(results: Results, out: Path) -> None:
    """results.json, table.md, and, where any run is done, curves.png and report.html."""
    out.mkdir(parents=True, exist_ok=True)
    write(results, out / "results.json")
    write_atomically(out / "table.md", markdown(results).encode())
    if results["runs"]:
        comparison.write(results, out)
