"""A study's charts, tables and numbers as files for a paper."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedadamw.checkpoint import write_atomically
from fedadamw.report.export import FOLDER, HEIGHT, WIDTH, record_cells, write_charts, write_csv
from fedadamw.report.latex import scores_table, tests_table
from fedadamw.report.study_charts import DIAGNOSTICS, all_charts, describe_bands
from fedadamw.report.study_files import Results, RunResult
from fedadamw.report.study_marks import Size
from fedadamw.report.study_scores import by_score
from fedadamw.runner.folder import RunFolder
from fedadamw.validation import check


def export_study(results: Results, folder: Path, runs: Path, kinds: Sequence[str]) -> list[Path]:
    """Write the study in `folder` as files of each of `kinds` into its `export` folder; return the files.

    csv: all records, and the final scores; svg, pdf: each chart; tex: the table and the paired tests.
    runs: the folder of the runs' folders, which csv needs; raises InputError if one is missing.
    """
    check(bool(results["runs"]), f"{folder}: no run has ended, so there is nothing to export")
    out = folder / FOLDER
    rows = _record_rows(results, runs) if "csv" in kinds else []
    out.mkdir(exist_ok=True)
    names = []
    if "csv" in kinds:
        write_csv(rows, out / "records.csv")
        write_csv(_last_rows(rows), out / "final-scores.csv")
        names += ["records.csv", "final-scores.csv"]
    if {"svg", "pdf"} & set(kinds):
        names += write_charts(all_charts(results, Size(WIDTH, HEIGHT)), describe_bands(results), out, kinds)
    if "tex" in kinds:
        tables = {"scores.tex": scores_table(results)}
        if results["comparisons"]:
            tables["paired-tests.tex"] = tests_table(results, "tests")
        if results.get("client_comparisons"):
            of_clients = by_score(results, "clients_mean")
            tables["paired-tests-clients.tex"] = tests_table(of_clients, "tests-clients")
        for name, text in tables.items():
            write_atomically(out / name, text.encode())
        names += tables
    return [out / name for name in names]


def _record_rows(results: Results, runs: Path) -> list[dict[str, object]]:
    """Return a row for each round of each run."""
    rows = []
    for run in results["runs"]:
        folder = RunFolder(runs / run["name"])
        check(folder.started, f"{folder.path}: is missing, and csv needs the records of each run")
        rows += record_cells(_describe_run(run), folder.records())
    return rows


def _last_rows(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Return the last row of each run, without what is of its last round alone."""
    of_round = {"lr", "clients", "rejected", "up_bytes", "down_bytes", "wall_s", "waited_s", *DIAGNOSTICS}
    last = {row["run"]: row for row in rows}
    return [{name: value for name, value in row.items() if name not in of_round} for row in last.values()]


def _describe_run(run: RunResult) -> dict[str, object]:
    """Return the cells that all rows of a run have: its name, algorithm, varied settings and seed."""
    varied = {path: value for path, value in run["label"].items() if path != "algorithm"}
    algorithm = run["name"].rpartition("-seed")[0]
    return {"run": run["name"], "variant": run["variant"], "algorithm": algorithm, **varied, "seed": run["seed"]}
