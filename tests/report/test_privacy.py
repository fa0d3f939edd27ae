"""Records with an epsilon: on a run's page, in the browser, in progress lines, in a study's tables and files."""

from math import inf

import pytest

from fedadamw.cli.tables import print_run
from fedadamw.report.export import record_cells
from fedadamw.report.latex import scores_table
from fedadamw.report.metrics import describe_loss, epsilon_of
from fedadamw.report.run_charts import curves_chart, epsilon_chart, has_epsilon, has_losses
from fedadamw.report.run_page import summarize
from fedadamw.report.study_rows import align
from fedadamw.report.study_table import table_headings, table_rows, to_markdown
from fedadamw.study.results import summarize as summarize_variant


def record(round_, **changes):
    base = {"round": round_, "lr": 0.1, "train_loss": None, "test_loss": None, "test_metrics": None, "clients": 2}
    base |= {"rejected": 0, "up_bytes": 10, "down_bytes": 10, "wall_s": 1.0, "epsilon": float(round_)}
    return {**base, **changes}


RECORDS = [record(1), record(2, test_loss=1.5, test_metrics={"accuracy": 0.5})]


def run_result(variant, seed, rounds, **changes):
    found = {"name": f"{variant}-{seed}", "variant": variant, "label": {"algorithm": variant}, "seed": seed}
    found |= {"commit": None, "settings": {"lr": 0.1}, "up_bytes_a_client": 5, "down_bytes_a_client": 5}
    found |= {"rejected": 0, "wall_s": 1.0, "round": rounds, "score": [0.1 * r for r in rounds], "diagnostics": []}
    found |= {"test_loss": [1.0] * len(rounds), "train_loss": [None] * len(rounds), "sent_bytes": rounds}
    return {**found, **changes}


def test_a_record_tells_its_epsilon_where_others_tell_a_loss():
    assert describe_loss(RECORDS[0]) == "  epsilon 1"
    assert describe_loss({**RECORDS[0], "epsilon": None}) == "  epsilon inf"
    assert epsilon_of({**RECORDS[0], "epsilon": None}) == inf
    plain = {name: value for name, value in RECORDS[0].items() if name != "epsilon"}
    assert epsilon_of(plain) is None
    assert describe_loss({**plain, "train_loss": 0.5}) == "  loss 0.5000"
    assert describe_loss(plain) == "  loss -"


def test_charts_show_what_there_is():
    assert has_epsilon(RECORDS)
    assert has_losses(RECORDS)
    assert not has_losses(RECORDS[:1])
    rows = epsilon_chart(RECORDS).to_dict()["data"]["values"]
    assert rows == [{"round": 1, "epsilon": 1.0}, {"round": 2, "epsilon": 2.0}]
    alone = curves_chart(RECORDS[:1]).to_dict()
    assert "hconcat" not in alone, "neither a score nor a loss"
    assert alone["data"]["values"] == rows[:1]
    assert len(curves_chart(RECORDS).to_dict()["hconcat"]) == 3
    assert not has_epsilon([{**RECORDS[0], "epsilon": None}])


def test_cards_tables_and_files_have_the_epsilon(capsys):
    assert ("epsilon", "2") in summarize(RECORDS)
    print_run(RECORDS)
    shown = capsys.readouterr().out
    assert "epsilon" in shown
    assert "training loss" not in shown
    rows = record_cells({"run": "a"}, RECORDS)
    assert [row["epsilon"] for row in rows] == [1.0, 2.0]


@pytest.fixture
def study():
    runs = [run_result("a", 0, [2, 4, 5], epsilon=3.0), run_result("a", 1, [2, 4, 6], epsilon=3.5)]
    runs += [run_result("b", 0, [2, 4, 6], epsilon=None), run_result("c", 0, [2, 4, 6], train_loss=[None, None, 1.0])]
    groups = [runs[:2], runs[2:3], runs[3:]]
    found = {"format": 3, "recipe": "digits", "metric": "accuracy", "target": None, "score": "test", "runs": runs}
    found |= {"summary": [summarize_variant(group, None) for group in groups], "comparisons": [], "missing": []}
    return found


def test_a_study_has_a_column_of_epsilons(study):
    place = table_headings(study).index("epsilon")
    cells = {row[0]: row[place] for row in table_rows(study)}
    assert cells == {"a": "3.5", "b": "infinite", "c": "none"}
    assert "| epsilon |" in to_markdown(study)
    assert "epsilon" in scores_table(study)
    plain = {**study, "summary": [{k: v for k, v in s.items() if k != "epsilon"} for s in study["summary"]]}
    assert "epsilon" not in table_headings(plain)


def test_seeds_that_a_budget_ended_in_different_rounds_are_compared_in_those_that_all_have(study):
    assert align(study["runs"][:2]) == [(2, [0, 0]), (4, [1, 1])]
    assert study["summary"][0]["score"] == pytest.approx((0.5 + 0.6) / 2), "after each one's last round"
