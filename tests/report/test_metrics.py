"""Held-out metrics other than accuracy, shown by their names wherever a run or a study is."""

import json

import numpy as np
import pytest
from support.studies import LAST_IS_NONE, MANIFEST, NAN, rounds, study_of

from fedadamw.cli import tables
from fedadamw.flower.local import demo
from fedadamw.report import metrics, study_rows, study_table
from fedadamw.report.run_page import summarize, write_run_page
from fedadamw.report.study_page import write_study_page
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.progress import Progress
from fedadamw.study import results
from fedadamw.study.plan import plan
from fedadamw.study.progress import StudyProgress
from fedadamw.study.workers import EndedRun


@pytest.fixture
def run(tmp_path):
    """A run of a study that is done."""
    (found,) = plan("digits", ["fedavg"], [0], [("training.rounds", 4)], tmp_path)
    found.folder.start(found.experiment, MANIFEST)
    for record in rounds():
        found.folder.append(record)
    return found


def on_progress(run, capsys) -> str:
    with Progress(run.experiment.training, quiet=False) as progress:
        progress.start(0)
        for record in rounds():
            progress.round(record)
    return capsys.readouterr().out


def in_table(run, capsys) -> str:
    tables.print_run(run.folder.records())
    return capsys.readouterr().out


def on_page(run, capsys) -> str:
    folder = run.folder
    settings = run.experiment.model_dump(mode="json")
    write_run_page(folder.path, folder.records(), settings, MANIFEST, np.ones((2, 3), int), ["a", "b", "c"])
    return (run.folder.path / "report.html").read_text()


def in_study(run, capsys) -> str:
    with StudyProgress([], quiet=False) as progress:
        progress.update([], [EndedRun(run, None)])
    return capsys.readouterr().out


def in_comparison(run, capsys) -> str:
    found = results.collect_results("digits", [run])
    write_study_page(found, run.parent)
    return (run.parent / "report.html").read_text() + study_table.to_markdown(found)


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (on_progress, ["Matthews -6.25%", "Matthews 41.25%"]),
        (in_table, ["test Matthews", "-6.25%", "41.25%", "test accuracy", "87.50%"]),
        (
            on_page,
            [
                "<b>41.25%</b><span>test Matthews",
                "<b>41.25%, 4</b><span>best, in round",
                "<b>87.50%</b><span>test accuracy",
                '"Test Matthews"',
            ],
        ),
        (in_study, ["Matthews 41.25% in 4 s"]),
        (in_comparison, ["<button>test Matthews</button>", "Test Matthews by round", "| test Matthews |", "41.2 %"]),
    ],
)
def test_the_main_metric_is_shown_by_its_name(run, capsys, shown, wanted):
    text = shown(run, capsys)
    assert [words for words in wanted if words not in text] == []


def test_a_study_keeps_the_main_metric_and_its_name(run, tmp_path):
    results.write_results(results.collect_results("digits", [run]), tmp_path / "results.json")
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["metric"] == "matthews"
    assert found["runs"][0]["score"] == [-0.0625, 0.4125]
    assert (found["summary"][0]["score"], found["summary"][0]["score_sd"]) == (0.4125, None)
    assert (found["target"], found["summary"][0]["rounds_to_target"]) == (0.4125, 4)
    assert results.collect_results("digits", [run], target=-0.1)["summary"][0]["rounds_to_target"] == 2, (
        "it may be below 0"
    )


def test_metric_order_is_kept_and_perplexity_is_not_a_percentage(tmp_path):
    folder = RunFolder(tmp_path)
    for record in rounds([{"accuracy": 0.25, "perplexity": 1234.56}, {"accuracy": 0.5, "perplexity": float("inf")}]):
        folder.append(record)
    found = folder.records()
    assert (metrics.main_metric(found), [metrics.score(r) for r in found]) == ("accuracy", [None, 0.25, None, 0.5])
    shown = [[metrics.format_metric(*pair) for pair in r["test_metrics"].items()] for r in found if r["test_metrics"]]
    assert shown == [["25.00%", "1235"], ["50.00%", "-"]]
    assert demo.format_record(found[-1]) == "round 4  loss 1.0000  accuracy 50.00%  perplexity -  1.0 s"


NONE_AT_ALL = ({"spearman": NAN}, {"spearman": NAN})


@pytest.mark.parametrize(("evaluated", "best"), [(LAST_IS_NONE, "25.00%, 2"), (NONE_AT_ALL, "-")])
def test_a_run_whose_last_score_is_not_a_number_has_its_table_and_page(tmp_path, capsys, evaluated, best):
    (run,) = study_of(tmp_path, fedavg=evaluated)
    assert in_table(run, capsys).splitlines()[-1].split()[-4:] == ["0.5000", "-", "0.0", "MB"]
    text = on_page(run, capsys)
    assert f"<b>-</b><span>test Spearman</span></div>\n<div class=card><b>{best}</b><span>best, in round" in text
    assert (run.folder.path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "Spearman -" in in_study(run, capsys)


def test_a_run_whose_last_score_is_not_a_number_is_ranked_last_and_named(tmp_path):
    named = {"fedavg": LAST_IS_NONE, "fedadamw": ({"spearman": 0.5}, {"spearman": 0.125}), "fedcm": NONE_AT_ALL}
    found = results.collect_results("digits", study_of(tmp_path, **named))
    assert [row[2] for row in study_table.table_rows(found)] == ["12.5 %", "-", "-"]
    assert [(m["variant"], m["error"]) for m in found["missing"]] == [
        (name, "Spearman is not a number after the last round") for name in ("fedavg", "fedcm")
    ]
    assert found["target"] == 0.125
    assert [s["rounds_to_target"] for s in found["summary"]] == [2, 2, None], "what came before counts"
    results.write_results(found, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text())["runs"][0]["score"] == [0.25, None]
    write_study_page(found, tmp_path)
    assert "fedcm, seed 0: Spearman is not a number" in (tmp_path / "report.html").read_text()
    only_none = results.collect_results("digits", study_of(tmp_path / "none", fedavg=NONE_AT_ALL))
    write_study_page(only_none, tmp_path)
    assert only_none["target"] is None


def test_a_seed_without_a_number_is_not_left_out_of_a_mean(tmp_path):
    runs = plan("digits", ["fedavg"], [0, 1], [("training.rounds", 4)], tmp_path)
    for run, evaluated in zip(runs, (LAST_IS_NONE, ({"spearman": 0.75}, {"spearman": 0.5})), strict=True):
        run.folder.start(run.experiment, MANIFEST)
        for record in rounds(evaluated):
            run.folder.append(record)
    (summary,) = results.collect_results("digits", runs)["summary"]
    assert (summary["score"], summary["score_sd"], summary["seeds"]) == (None, None, 2)
    assert study_table.format_score(summary) == "-"
    found = results.collect_results("digits", runs)
    assert (study_rows.final_rows(found), found["comparisons"]) == ([], [])


def test_a_round_without_a_finite_loss_is_reported(tmp_path):
    record = {"round": 1, "train_loss": None, "test_metrics": {"spearman": None}, "wall_s": 1.0}
    assert demo.format_record(record) == "round 1  loss -  Spearman -  1.0 s"


def test_a_run_with_several_ranks_says_how_long_they_waited():
    record = {"round": 1, "train_loss": 1.0, "test_loss": None, "test_metrics": None, "wall_s": 30.0, "clients": 2}
    record |= {"rejected": 0, "up_bytes": 8, "down_bytes": 8}
    assert "ranks waited for each other" not in dict(summarize([record]))
    alone = {**record, "wall_s": 1000.0}  # of a time with one rank
    records = [alone, {**record, "waited_s": 2.0}, {**record, "waited_s": 4.0}]
    assert dict(summarize(records))["ranks waited for each other"] == "6 s (10%)"


def test_a_round_without_clients_is_no_division_by_zero():
    record = {"round": 1, "train_loss": None, "test_loss": None, "test_metrics": None, "wall_s": 1.0, "clients": 2}
    record |= {"rejected": 1, "up_bytes": 800, "down_bytes": 2700, "clip": 0.25}
    empty = {**record, "round": 2, "clients": 0, "rejected": 0, "up_bytes": 0, "down_bytes": 0, "clip": 0.5}
    found = dict(summarize([record, empty]))
    assert found["sent up by a client and round"] == "400 B"
    assert found["sent down to a client and round"] == "900 B"
    assert found["updates clipped to"] == "0.5"
    assert "sent up by a client and round" not in dict(summarize([empty]))
