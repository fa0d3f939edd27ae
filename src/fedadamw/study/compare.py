"""`fedadamw compare`: algorithms x settings x seeds of one recipe, side by side."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedadamw.checkpoint import write_atomically
from fedadamw.report import study_page as comparison
from fedadamw.report.study_files import Results
from fedadamw.runner.folder import RunFolder
from fedadamw.study.plan import Run, choose_jobs, plan
from fedadamw.study.progress import StudyProgress
from fedadamw.study.results import collect, markdown, write
from fedadamw.study.workers import Ended, Workers, run_all
from fedadamw.validation import check

RUNS = "runs"


def compare(
    recipe: str,
    algorithms: Sequence[str],
    seeds: int,
    given: Sequence[tuple[str, Any]],
    out: Path,
    *,
    target: float | None = None,
    jobs: int | None = None,
    quiet: bool = False,
) -> Results:
    """Run what is not done yet in `out`, then write results.json, table.md, curves.png and report.html there.

    given: (path, value) of settings; a list of values makes a variant of each. The same call resumes a study.
    jobs: runs at a time; by default one per core, or one on a GPU.
    """
    runs = plan(recipe, algorithms, range(seeds), given, out / RUNS, jobs)
    with lock_study(out):
        ended = run_here(runs, jobs, quiet=quiet)
        results = collect(recipe, runs, ended, target)
        save(results, out)
    return results


@contextmanager
def lock_study(out: Path) -> Iterator[None]:
    """Lock the folder of a study; raise InputError if it holds a single run."""
    folder = RunFolder(out)
    with folder.lock():
        check(not folder.started, f"{out}: holds a single run; choose another --out")
        yield


def run_here(runs: Sequence[Run], jobs: int | None, *, quiet: bool) -> list[Ended]:
    """Execute every run that is not done yet, `jobs` at a time."""
    with StudyProgress(runs, quiet=quiet) as show, Workers(jobs or choose_jobs(runs)) as workers:
        return run_all(runs, workers, show)


def save(results: Results, out: Path) -> None:
    """Write results.json, table.md and, if any run is done, curves.png and report.html."""
    out.mkdir(parents=True, exist_ok=True)
    write(results, out / "results.json")
    write_atomically(out / "table.md", markdown(results).encode())
    if results["runs"]:
        comparison.write(results, out)
        return
    for name in comparison.FILES:
        (out / name).unlink(missing_ok=True)
