"""`fedadamw compare`: algorithms x settings x seeds of one recipe."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedadamw.checkpoint import write_atomically
from fedadamw.report.study_files import Results
from fedadamw.report.study_page import PAGE_FILES, write_study_page
from fedadamw.report.study_table import to_markdown
from fedadamw.runner.folder import RunFolder
from fedadamw.study.export import export_study
from fedadamw.study.plan import Overrides, Run, default_jobs, plan
from fedadamw.study.progress import StudyProgress
from fedadamw.study.results import collect_results, write_results
from fedadamw.study.workers import EndedRun, Workers, run_all
from fedadamw.validation import check

RUNS_FOLDER = "runs"


def compare(
    recipe: str,
    algorithms: Sequence[str],
    seeds: int,
    overrides: Overrides,
    out: Path,
    *,
    target: float | None = None,
    jobs: int | None = None,
    exports: Sequence[str] = (),
    variants: Mapping[str, Overrides] | None = None,
    quiet: bool = False,
) -> Results:
    """Run what is not done yet in `out`, then write results.json, table.md, curves.png and report.html there.

    overrides: a list of values makes a variant of each. After a stop the same call resumes.
    jobs: runs at a time; by default one per core, or one on a GPU. exports: of report.export.EXPORTS, into `export`.
    variants: settings that belong together, by name; each is a variant of every algorithm.
    """
    check(bool(algorithms), "algorithms: give at least one")
    runs = plan(recipe, algorithms, range(seeds), overrides, out / RUNS_FOLDER, jobs, variants)
    with lock_study(out):
        ended = run_pending(runs, jobs, quiet=quiet)
        results = collect_results(recipe, runs, ended, target)
        write_study(results, out)
        if exports and results["runs"]:
            export_study(results, out, out / RUNS_FOLDER, exports)
    return results


@contextmanager
def lock_study(out: Path) -> Iterator[None]:
    """Lock a study's folder for the block; raises InputError if it is in use or holds a single run."""
    folder = RunFolder(out)
    with folder.lock():
        check(not folder.started, f"{out}: holds a single run; choose another --out")
        yield


def run_pending(runs: Sequence[Run], jobs: int | None, *, quiet: bool) -> list[EndedRun]:
    """Run those that are not done, `jobs` at a time."""
    with StudyProgress(runs, quiet=quiet) as progress, Workers(jobs or default_jobs(runs)) as workers:
        return run_all(runs, workers, progress.update)


def write_study(results: Results, out: Path) -> None:
    """Write results.json, table.md and, if any run is done, curves.png and report.html."""
    out.mkdir(parents=True, exist_ok=True)
    write_results(results, out / "results.json")
    write_pages(results, out)


def write_pages(results: Results, out: Path) -> list[Path]:
    """Write table.md and, if any run is done, curves.png and report.html; return the files."""
    write_atomically(out / "table.md", to_markdown(results).encode())
    if results["runs"]:
        write_study_page(results, out)
        return [out / name for name in ("report.html", "curves.png", "table.md")]
    for name in PAGE_FILES:
        (out / name).unlink(missing_ok=True)
    return [out / "table.md"]
