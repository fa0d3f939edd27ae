"""Clients' scores as they are read, drawn and named: few numbers whatever the number of clients."""

import json

import numpy as np
import pytest

from fedadamw.report import client_charts
from fedadamw.report.client_charts import against_chart, rounds_chart, sorted_chart
from fedadamw.report.client_mix import describe_classes, find_mix
from fedadamw.report.client_names import name_clients
from fedadamw.report.client_scores import Evaluated, choose_evenly, read_scores, spread
from fedadamw.report.clients_section import client_charts as all_charts
from fedadamw.report.clients_section import describe_worst, render_clients, worst_clients


def evaluated(scores, round_=5, metric="accuracy", samples=None) -> Evaluated:
    scores = np.array(scores, float)
    samples = np.full(len(scores), 4.0) if samples is None else np.array(samples, float)
    return Evaluated(round_, np.arange(len(scores)), samples, {"loss": 1 - scores, metric: scores})


def many(clients: int) -> Evaluated:
    rng = np.random.default_rng(0)
    return evaluated(rng.random(clients), samples=rng.integers(1, 5000, clients))


def subtitle(chart: dict) -> str:
    return chart.get("layer", [chart])[0]["title"]["subtitle"]


def test_lines_that_are_damaged_or_of_later_rounds_are_left_out(tmp_path):
    path = tmp_path / "client_scores.jsonl"
    good = {"round": 2, "clients": [0, 3], "samples": [5, None], "loss": [0.5, None], "f1": [0.75, 0.5]}
    short, later = {**good, "f1": [0.75]}, {**good, "round": 4}
    lines = [json.dumps(good), json.dumps(short), "not JSON", "{}", json.dumps(later), '{"round": 6, "cl']
    path.write_text("\n".join(lines))
    assert [found.round for found in read_scores(path)] == [2, 4]
    (found,) = read_scores(path, rounds=2)
    assert (found.main, found.scores.tolist(), found.clients.tolist()) == ("f1", [0.75, 0.5], [0, 3])
    assert np.isnan(found.samples[1])
    assert np.isnan(found.metrics["loss"][1])
    assert read_scores(tmp_path / "missing") == []


@pytest.mark.parametrize("clients", [[1e400], [10**30], ["a"], [[1]]])
def test_numbers_that_are_none_of_a_client_are_damage(tmp_path, clients):
    path = tmp_path / "client_scores.jsonl"
    path.write_text(json.dumps({"round": 1, "clients": clients, "samples": [5], "loss": [0.5]}))
    assert read_scores(path) == []


def test_the_spread_is_that_of_sorted_scores_by_hand():
    found = spread(evaluated(np.arange(20)[::-1] / 20))
    assert found.worst == pytest.approx(0.025), "mean of 0 and 0.05"
    assert found.best == pytest.approx(0.925)
    assert (found.quarter, found.median, found.three_quarters) == pytest.approx((0.2375, 0.475, 0.7125))
    assert spread(evaluated([0.5, np.nan])).worst == 0.5
    assert spread(evaluated([np.nan])) is None
    assert spread(evaluated([0.1, 0.3] + [0.5] * 9)).worst == pytest.approx(0.2), "a tenth of 11 is 2, as in the record"


def test_of_losses_the_highest_is_the_worst():
    found = Evaluated(1, np.arange(4), np.ones(4), {"loss": np.array([4.0, 1.0, 2.0, 3.0])})
    assert found.worst_first().tolist() == [0, 3, 2, 1]
    assert (spread(found).worst, spread(found).best) == (4.0, 1.0)
    assert spread(found).quarter > spread(found).three_quarters


def test_evenly_chosen_places_have_both_ends():
    assert list(choose_evenly(3, 5)) == [0, 1, 2]
    chosen = choose_evenly(1000, 7)
    assert (len(chosen), chosen[0], chosen[-1]) == (7, 0, 999)


@pytest.mark.parametrize("clients", [1, 10, 10_000])
def test_no_chart_has_a_mark_for_each_of_many_clients(clients):
    found = many(clients)
    mix = find_mix(np.random.default_rng(0).integers(1, 50, (clients, 4)), list("abcd"))
    charts = all_charts([found], mix, {})
    assert list(charts) == ["spread", "sorted", *(["by-samples", "by-classes"] if clients > 1 else [])]
    for name, (_, chart) in charts.items():
        rows = chart.to_dict(validate=False)["data"]["values"]
        assert 0 < len(rows) <= 640, name
        counted = sum(row.get("clients", 1) for row in rows)
        assert counted == (clients if name.startswith("by-") else min(clients, len(rows))), name


def test_a_curve_of_many_clients_says_how_many_it_shows():
    chart = sorted_chart(many(10_000), {}).to_dict(validate=False)
    assert subtitle(chart) == "round 5, 10,000 clients, 200 shown, evenly"
    ranks = [row["rank"] for row in chart["data"]["values"]]
    assert (ranks[0], ranks[-1]) == (1, 10_000)
    scores = [row["score"] for row in chart["data"]["values"]]
    assert scores == sorted(scores)


def test_clients_that_have_all_the_same_are_not_drawn_against_it():
    mix = find_mix(np.array([[3, 1], [3, 1]]), "ab")
    assert list(all_charts([evaluated([0.5, 0.6])], mix, {})) == ["spread", "sorted"]


def test_one_evaluation_has_bars_for_bands_and_many_are_thinned():
    marks = [layer["mark"]["type"] for layer in rounds_chart([many(9)], {}).to_dict(validate=False)["layer"]]
    assert marks[:2] == ["bar", "bar"]
    long = [evaluated(np.arange(9) / 9, round_=r) for r in range(1, 1001)]
    chart = rounds_chart(long, {}).to_dict(validate=False)
    assert chart["layer"][0]["mark"]["type"] == "area"
    assert len(chart["data"]["values"]) == 300
    assert subtitle(chart).endswith("300 of 1,000 evaluations")


def test_a_few_clients_have_a_line_each():
    found = [evaluated([0.5, np.nan, 0.25], round_=1), evaluated([0.5, 0.75, 0.5], round_=3)]
    chart = rounds_chart(found, {2: "client 2, node 7"}).to_dict(validate=False)
    rows = [(row["round"], row["of"], row["score"]) for row in chart["data"]["values"]]
    assert rows[:2] == [(1, "client 0", 0.5), (1, "client 2", 0.25)]
    assert len(rows) == 5
    assert chart["data"]["values"][1]["client"] == "client 2, node 7", "what hovering shows"
    assert chart["layer"][0]["encoding"]["color"]["scale"]["domain"] == ["client 0", "client 1", "client 2"]


def test_sizes_that_differ_widely_get_a_logarithmic_axis():
    def axis(sizes):
        across = client_charts.Across(np.array(sizes, float), "size", "samples", "accuracy", logarithmic=True)
        chart = against_chart(evaluated([0.1] * len(sizes)), across, {}).to_dict(validate=False)
        return chart["encoding"]["x"], chart["data"]["values"]

    x, rows = axis([1, 10, 100, np.nan, 0])
    assert (x["scale"]["type"], x["axis"]["values"]) == ("log", [1, 2, 5, 10, 20, 50, 100])
    assert len(rows) == 3, "what is not known or has no logarithm is left out"
    assert axis([10, 20])[0]["scale"] == {"zero": False}


def test_classes_are_named_from_the_most_frequent():
    mix = find_mix(np.array([[0, 6, 3, 1, 0], [0, 0, 0, 0, 0], [1, 2, 3, 4, 0]]), list("abcde"))
    assert describe_classes(mix, 0) == "b (60%), c (30%), d (10%)"
    assert describe_classes(mix, 1) == describe_classes(mix, 9) == ""
    assert describe_classes(mix, 2) == "d (40%), c (30%), b (20%), 1 more"
    assert mix.largest_share.tolist() == [0.6, 0.0, 0.4]
    assert find_mix(np.zeros((3, 2), int), "ab") is None
    assert describe_classes(find_mix(np.array([[7]]), ["all"]), 0) == "all (100%)", "fewer classes than are named"


def test_the_worst_clients_are_named_with_what_they_have():
    found = evaluated([0.9, 0.25, np.nan, 0.5], samples=[3, 4, 5, np.nan])
    mix = find_mix(np.array([[8, 2], [0, 10]]), ["cat", "dog"])
    table = worst_clients(found, mix, {1: "client 1, node 77"}, most=2)
    assert table.headings == ["client", "accuracy", "loss", "held-out samples", "training samples", "classes"]
    assert table.rows == [
        ["client 1, node 77", "25.00%", "0.75", "4", "10", "dog (100%)"],
        ["client 3", "50.00%", "0.5", "-", "-", ""],
    ]
    assert describe_worst(found, 2).startswith("The 2 worst of 3 clients by accuracy in round 5")
    assert worst_clients(found, None, {}).headings == ["client", "accuracy", "loss", "held-out samples"]


def test_tuned_models_are_shown_beside_what_they_were_tuned_from():
    found = evaluated([0.5, 0.75])
    found = found._replace(
        metrics={**found.metrics, "tuned_loss": np.array([0.1, 0.1]), "tuned_accuracy": np.array([1.0, 0.5])}
    )
    assert (found.main, found.tuned.tolist()) == ("accuracy", [1.0, 0.5])
    table = worst_clients(found, None, {})
    assert table.headings == ["client", "accuracy", "accuracy, tuned", "loss", "held-out samples"]
    assert table.rows[0][1:3] == ["50.00%", "100.00%"]
    heading, chart = all_charts([found], None, {})["by-tuning"]
    assert heading == "gain of accuracy by tuning"
    rows = chart.to_dict(validate=False)["data"]["values"]
    assert [(row["x"], row["score"]) for row in rows] == [(0.5, 0.5), (0.75, -0.25)]
    only_loss = found._replace(metrics={"loss": np.zeros(2), "tuned_loss": np.ones(2)})
    assert only_loss.main == "loss"


def test_hostile_classes_are_words():
    mix = find_mix(np.array([[1]]), ["<img src=x onerror='hostile=1'>\x1b"])
    text = render_clients(evaluated([0.5]), mix, {}, [])
    assert "<img" not in text
    assert r"&lt;img src=x onerror=&#x27;hostile=1&#x27;&gt;\x1b (100%)" in text


def test_nodes_have_the_names_that_they_joined_with(tmp_path):
    events = [
        {"event": "joined", "client": 2, "node": "11"},
        {"event": "left", "client": 2},
        {"event": "joined", "client": 2, "node": "12"},
        {"event": "joined"},
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, events)) + '\n{"event": "joined", "cl')
    assert name_clients(tmp_path) == {2: "client 2, node 12"}
    assert name_clients(tmp_path / "missing") == {}
    assert name_clients(tmp_path / "missing", ["a", "b"]) == {0: "client 0, a", 1: "client 1, b"}
