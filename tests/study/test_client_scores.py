"""Studies of runs whose clients were evaluated: columns, tests on the clients' mean, runs without a test score."""

import csv

import pytest
from support.studies import MANIFEST, of_clients, rounds

from fedadamw.cli import tables
from fedadamw.report.latex import scores_table
from fedadamw.report.study_charts import all_charts
from fedadamw.report.study_page import render
from fedadamw.report.study_scores import by_score
from fedadamw.report.study_table import table_headings, table_rows, to_markdown
from fedadamw.study.export import export_study
from fedadamw.study.plan import plan
from fedadamw.study.progress import StudyProgress
from fedadamw.study.results import collect_results, read_results, write_results
from fedadamw.study.workers import EndedRun

MEANS = {"fedavg": (0.3, 0.5), "fedadamw": (0.4, 0.6)}


def study(parent, tested=lambda name: True, records=None):
    """Two algorithms with three seeds, done: each 0.01 better than the seed before."""
    runs = plan("digits", list(MEANS), range(3), [("training.rounds", 4)], parent)
    for run in runs:
        name, seed = run.experiment.algorithm_name, run.experiment.seed
        run.folder.start(run.experiment, MANIFEST)
        own = [mean + 0.01 * seed * (1 + (name == "fedavg")) for mean in MEANS[name]]
        for record in of_clients(own, tested(name)) if records is None else records(name):
            run.folder.append(record)
    return runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return study(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def found(runs):
    return collect_results("digits", runs)


def test_the_table_has_the_clients_mean_spread_and_worst_tenth(found):
    assert table_headings(found)[2:6] == [
        "test accuracy",
        "mean of clients",
        "std over clients",
        "worst tenth of clients",
    ]
    best = table_rows(found)[0]
    assert best[0] == "fedadamw"
    assert best[2:6] == ["71.0 ± 2.5 %", "61.0 ± 2.5 %", "5.0 %", "41.0 ± 2.5 %"]
    (summary,) = (s for s in found["summary"] if s["variant"] == "fedadamw")
    assert summary["clients_weighted"] == pytest.approx(0.62)


def test_variants_are_compared_by_the_clients_mean_as_by_the_score(tmp_path, found):
    (ours,) = found["client_comparisons"]
    assert (ours["best"], ours["variant"], ours["seeds"]) == ("fedadamw", "fedavg", 3)
    assert ours["difference"] == pytest.approx(0.09)
    assert ours["p"] == pytest.approx(found["comparisons"][0]["p"]), "the test scores differ by as much"
    text = to_markdown(found)
    assert "Mean accuracy of clients:\n\n| fedadamw against |" in text
    page = render(found, "study")
    assert "<h2>Mean accuracy of clients: paired tests over seeds</h2>" in page
    path = tmp_path / "results.json"
    write_results(found, path)
    again = read_results(path)
    assert by_score(again, "clients_mean")["summary"][0]["score"] == pytest.approx(0.52)
    assert to_markdown(again) == text


def test_the_page_draws_the_mean_and_the_worst_tenth_by_round(found):
    charts = all_charts(found)
    assert charts["clients_mean"][0] == "Mean accuracy of clients by round"
    assert charts["clients_worst_decile"][0] == "Accuracy of the worst tenth of clients by round"
    rows = charts["clients_worst_decile"][1].to_dict(validate=False)["data"]["values"]
    mean = next(row for row in rows if row["variant"] == "fedadamw" and row["round"] == 4 and "seed" not in row)
    assert mean["score"] == pytest.approx(0.41)


def test_where_a_run_has_no_test_score_all_are_compared_by_the_clients_mean(tmp_path, capsys):
    runs = study(tmp_path, lambda name: name != "fedavg")
    found = collect_results("digits", runs)
    assert (found["score"], found["metric"], found["missing"]) == ("clients_mean", "accuracy", [])
    assert "client_comparisons" not in found, "they are the comparisons"
    assert found["comparisons"][0]["difference"] == pytest.approx(0.09)
    assert table_headings(found)[2:5] == ["mean accuracy of clients", "std over clients", "worst tenth of clients"]
    assert "test" not in all_charts(found)
    assert all_charts(found)["score"][0] == "Mean accuracy of clients by round"
    tables.print_study(found)
    with StudyProgress([], quiet=False) as progress:
        progress.update([], [EndedRun(runs[0], None)])
    assert "fedavg, seed 0: mean accuracy of clients 50.00% in 4 s" in capsys.readouterr().out


def test_a_run_with_neither_score_is_missing_and_says_why(tmp_path):
    untested = [of_clients((0.3, 0.5), tested=False), rounds([{"accuracy": 0.5}, {"accuracy": 0.6}])]
    runs = study(tmp_path, records=lambda name: untested[name == "fedavg"])
    found = collect_results("digits", runs)
    assert {run["variant"] for run in found["runs"]} == {"fedadamw"}
    assert [m["variant"] for m in found["missing"]] == ["fedavg"] * 3
    assert "set partition.held_out and training.client_evaluation" in found["missing"][0]["error"]


def test_a_paper_gets_the_columns_and_the_tests(tmp_path, runs, found):
    files = export_study(found, tmp_path, runs[0].parent, ["csv", "tex"])
    assert [file.name for file in files] == [
        "records.csv",
        "final-scores.csv",
        "scores.tex",
        "paired-tests.tex",
        "paired-tests-clients.tex",
    ]
    rows = list(csv.DictReader((tmp_path / "export" / "final-scores.csv").read_text().splitlines()))
    assert float(rows[0]["clients_mean"]) == 0.5
    assert float(rows[0]["clients_pooled_accuracy"]) == pytest.approx(0.52)
    assert float(rows[0]["clients_worst_decile"]) == pytest.approx(0.3)
    table = scores_table(found)
    assert r"mean of clients (\%)" in table
    assert r"& 61.0 $\pm$ 2.5 & 5.0 & 41.0 $\pm$ 2.5 &" in table
    tests = (tmp_path / "export" / "paired-tests-clients.tex").read_text()
    assert r"\label{tab:tests-clients}" in tests


def test_studies_without_scores_of_clients_are_as_before(tmp_path):
    records = rounds([{"accuracy": 0.5}, {"accuracy": 0.6}])
    found = collect_results("digits", study(tmp_path, records=lambda _: records))
    assert table_headings(found)[2:4] == ["test accuracy", "training loss"]
    assert not found.keys() & {"client_comparisons"}
    assert not any("clients" in run for run in found["runs"])
    assert not any(key.startswith("clients") for s in found["summary"] for key in s)
