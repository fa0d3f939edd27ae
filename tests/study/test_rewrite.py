"""`fedadamw report` and `--export`: pages written again from files, and files for a paper."""

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
from support.studies import study_of

from fedadamw.report.export import EXPORTS, make_file_name, parse_exports
from fedadamw.runner.folder import RunFolder
from fedadamw.study.compare import write_study
from fedadamw.study.results import collect_results, read_results
from fedadamw.study.rewrite import rewrite
from fedadamw.validation import InputError

OF_CLASSES = ("variance-of-v-across-clients-by-class-of-block", "norm-of-the-clients-updates-by-class-of-block")
DIAGNOSED = (
    "spread-of-v-across-clients",
    "variance-of-v-across-clients",
    "client-drift",
    "cosine-of-the-clients-updates-with-the-last-global-direction",
    "norm-of-the-clients-updates",
    *OF_CLASSES,
)


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def compared(finished, tmp_path_factory) -> Path:
    """A comparison of two algorithms with two seeds, exported in every way."""
    folder = tmp_path_factory.mktemp("exported") / "study"
    shutil.copytree(finished, folder)
    for name in ("report.html", "curves.png", "table.md"):
        (folder / name).unlink()
    rewrite(folder, EXPORTS)
    return folder


def test_a_comparison_exports_every_record_and_final_score(compared):
    rows = read_csv(compared / "export" / "records.csv")
    assert len(rows) == 2 * 2 * 6
    results = read_results(compared / "results.json")
    for run in results["runs"]:
        of_run = [row for row in rows if row["run"] == run["name"]]
        records = RunFolder(compared / "runs" / run["name"]).records()
        assert [int(row["round"]) for row in of_run] == [1, 2, 3, 4, 5, 6]
        assert {(row["algorithm"], row["seed"]) for row in of_run} == {(run["variant"], str(run["seed"]))}
        assert [float(row["train_loss"]) for row in of_run] == [record["train_loss"] for record in records]
        assert int(of_run[-1]["sent_bytes"]) == sum(record["up_bytes"] for record in records)
        assert float(of_run[-1]["test_accuracy"]) == records[-1]["test_metrics"]["accuracy"]
        assert of_run[0]["test_accuracy"] == "", "round 1 had no evaluation"
    finals = read_csv(compared / "export" / "final-scores.csv")
    assert [row["run"] for row in finals] == [run["name"] for run in results["runs"]]
    assert [float(row["test_accuracy"]) for row in finals] == pytest.approx(
        [run["score"][-1] for run in results["runs"]], abs=1e-5
    )


def test_a_comparison_exports_its_charts_in_a_columns_width(compared):
    names = {path.name for path in (compared / "export").iterdir()}
    charts = {"test-accuracy-by-round", "test-accuracy-by-bytes-sent", "clients-training-loss", "test-loss"}
    charts |= {"test-accuracy-after-the-last-round", *DIAGNOSED}
    tables = {"records.csv", "final-scores.csv", "scores.tex", "paired-tests.tex"}
    assert names == {f"{name}.{kind}" for name in charts for kind in ("svg", "pdf")} | tables
    for name in charts:
        pdf = (compared / "export" / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF")
        width = float(pdf.split(b"/MediaBox", 1)[1].split(b"[", 1)[1].split()[2])
        assert 200 < width <= 3.4 * 72, "points"
        svg = (compared / "export" / f"{name}.svg").read_text()
        assert svg.startswith("<svg")
        assert ("95% intervals of the mean" in svg) == (name not in OF_CLASSES), "where there are bands"


def test_a_comparisons_table_in_latex(compared):
    text = (compared / "export" / "scores.tex").read_text()
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    results = read_results(compared / "results.json")
    best = max(results["summary"], key=lambda s: s["score"])
    half = (best["score_interval"]["high"] - best["score_interval"]["low"]) / 2
    assert rf"{100 * best['score']:.1f} \pm {100 * half:.1f}" in text
    assert math.isclose(half, 12.706205 * best["score_sd"] / math.sqrt(2), rel_tol=1e-3)
    assert r"95\% intervals of the mean (Student t) over 2 seeds" in text


def test_report_writes_a_comparison_again_from_its_files(compared, finished):
    assert (compared / "table.md").read_text() == (finished / "table.md").read_text()
    assert "Paired tests over seeds" in (compared / "report.html").read_text()
    assert (compared / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_report_writes_each_study_of_an_ablation(tmp_path):
    runs = study_of(tmp_path / "runs", fedadamw=({"accuracy": 0.5}, {"accuracy": 0.625}))
    for name, recipe in (("parts", "other"), ("alpha", "digits")):
        write_study(collect_results(recipe, runs), tmp_path / name)
    (tmp_path / "table.md").write_text("## Weight of the global direction\n\nold\n")
    files = rewrite(tmp_path, ["csv"])
    assert {str(file.relative_to(tmp_path)) for file in files} >= {
        "table.md",
        "alpha/export/records.csv",
        "parts/report.html",
    }
    table = (tmp_path / "table.md").read_text()
    assert table.startswith("## Weight of the global direction\n\n| variant |")
    assert "without each of its parts" not in table, "which was of other settings"
    rewrite(tmp_path / "alpha", ["csv"])


def test_report_exports_the_trials_of_a_tuning(tmp_path):
    trials = [{"value": 0.1, "score": 0.5, "state": "complete"}, {"value": 0.3, "score": None, "state": "failed"}]
    stage = {
        "algorithm": "fedavg",
        "setting": "lr",
        "metric": "accuracy",
        "best": 0.1,
        "at_edge": True,
        "trials": trials,
    }
    (tmp_path / "trials.json").write_text(json.dumps([{**stage, "trials": trials}]))
    rewrite(tmp_path, ["csv", "tex"])
    rows = read_csv(tmp_path / "export" / "trials.csv")
    assert [(row["value"], row["score"], row["state"]) for row in rows] == [
        ("0.1", "0.5", "complete"),
        ("0.3", "", "failed"),
    ]
    assert r"fedavg & lr & 0.1 & 0.1, 0.3 \\" in (tmp_path / "export" / "trials.tex").read_text()
    with pytest.raises(InputError, match="--export pdf: a tuning has no charts; use csv or tex"):
        rewrite(tmp_path, ["csv", "pdf"])


def test_wrong_folders_and_kinds_are_one_line(tmp_path, run_main):
    (tmp_path / "file").write_text("")
    done = run_main("report", str(tmp_path), "--export", "csv,docx")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--export='docx'" in done.stderr
    for folder, message in ((tmp_path, "holds no run, comparison"), (tmp_path / "file", "is not a folder")):
        with pytest.raises(InputError, match=message):
            rewrite(folder)
    with pytest.raises(InputError, match="names one kind twice"):
        parse_exports("csv, csv")


def test_csv_needs_the_runs_folders(compared, tmp_path):
    shutil.copy(compared / "results.json", tmp_path)
    rewrite(tmp_path, ["tex"])
    with pytest.raises(InputError, match="is missing, and csv needs the records of each run"):
        rewrite(tmp_path, ["csv"])


@pytest.mark.parametrize(
    ("heading", "name"),
    [
        ("Clients' training loss", "clients-training-loss"),
        ("Test x/../y by round", "test-x-..-y-by-round"),
        ("...", "chart"),
    ],
)
def test_a_heading_as_a_file_name(heading, name):
    assert make_file_name(heading) == name
