"""Writes the page of a finished run or study again from its files, and exports it for a paper."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from fedadamw.checkpoint import write_atomically
from fedadamw.report.export import FOLDER, write_csv
from fedadamw.report.latex import escape_latex, make_table
from fedadamw.report.study_files import Stage
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.rewrite import rewrite_run
from fedadamw.study.ablate import STUDIES, write_tables
from fedadamw.study.compare import RUNS_FOLDER, lock_study, write_pages
from fedadamw.study.export import export_study
from fedadamw.study.results import read_results
from fedadamw.validation import InputError, check


def rewrite(path: Path, kinds: Sequence[str] = ()) -> list[Path]:
    """Write the page of a run, comparison, ablation or tuning again, and the files of `kinds`; return all files.

    Raises InputError if `path` holds none of them, if it goes on, or if it has nothing to export as one of `kinds`.
    """
    check(path.is_dir(), f"{path}: is not a folder; give that of a run or a study")
    folder = RunFolder(path)
    if folder.started:
        return [path / name for name in rewrite_run(folder, kinds)]
    studies = [path / name for name in STUDIES if (path / name / "results.json").is_file()]
    found = [(path / "results.json").is_file(), bool(studies), (path / "trials.json").is_file()]
    if not any(found):
        raise InputError(
            f"{path}: holds no run, comparison, ablation or tuning that has ended "
            "(no config.yaml, results.json or trials.json)"
        )
    with lock_study(path):
        if found[0]:
            return _rewrite_study(path, path / RUNS_FOLDER, kinds)
        if found[1]:
            return _rewrite_ablation(path, studies, kinds)
        return _export_tuning(path, kinds)


def _rewrite_study(path: Path, runs: Path, kinds: Sequence[str]) -> list[Path]:
    """Write a comparison or one study of an ablation."""
    results = read_results(path / "results.json")
    runs = runs if runs.is_dir() else path.parent / RUNS_FOLDER  # an ablation's studies share their runs
    files = write_pages(results, path)
    return [*files, *(export_study(results, path, runs, kinds) if kinds else [])]


def _rewrite_ablation(path: Path, studies: Sequence[Path], kinds: Sequence[str]) -> list[Path]:
    """Write each study of an ablation, and the table of those that it had."""
    table = path / "table.md"
    before = table.read_text() if table.is_file() else ""
    files = [file for study in studies for file in _rewrite_study(study, path / RUNS_FOLDER, kinds)]
    write_tables(path, [study.name for study in studies if f"## {STUDIES[study.name][0]}\n" in before])
    return [table, *files]


def _export_tuning(path: Path, kinds: Sequence[str]) -> list[Path]:
    """Write the trials of a tuning as csv or tex; it has no page and no charts."""
    check(bool(kinds), f"{path}: a tuning has no page; --export csv,tex writes its trials")
    drawn = [kind for kind in kinds if kind not in ("csv", "tex")]
    check(not drawn, f"--export {','.join(drawn)}: a tuning has no charts; use csv or tex")
    stages = cast(list[Stage], json.loads((path / "trials.json").read_text()))
    (path / FOLDER).mkdir(exist_ok=True)
    files = [path / FOLDER / f"trials.{kind}" for kind in kinds]
    for file in files:
        if file.suffix == ".csv":
            write_csv([cells for stage in stages for cells in _trial_cells(stage)], file)
        else:
            write_atomically(file, _tuning_table(stages).encode())
    return files


def _trial_cells(stage: Stage) -> list[dict[str, object]]:
    about = {"algorithm": stage["algorithm"], "setting": stage["setting"], "metric": stage["metric"]}
    return [{**about, **trial} for trial in stage["trials"]]


def _tuning_table(stages: Sequence[Stage]) -> str:
    """Return the best value of each setting and the values that were tried, in LaTeX."""
    rows = [
        (s["algorithm"], s["setting"], f"{s['best']:g}", ", ".join(f"{t['value']:g}" for t in s["trials"]))
        for s in stages
    ]
    cells = [list(map(escape_latex, row)) for row in rows]
    head = ["algorithm", "setting", "best", "tried"]
    return make_table(head, cells, "Settings, chosen on held-out training data.", "tuned", last="l")
