"""Nodes evaluate the model on their own held-out samples; wrong, late and missing scores change nothing."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny_models

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from support.false_sums import LIES, sums_of
from support.federated import COMMON, EVALUATE, assert_same, assert_same_scores, federated, read_events, simulated
from support.grids import LocalGrid

from fedadamw.flower.node.local_data import load_node_samples
from fedadamw.flower.protocol import OtherDataError
from fedadamw.flower.server_app import run
from fedadamw.prepare.problem import open_pretrained
from fedadamw.report.client_scores import read_lines
from fedadamw.settings.load import load
from fedadamw.validation import InputError

pytestmark = pytest.mark.usefixtures("restore_threads")
THREE = [*EVALUATE, "training.clients_per_round=3", "federation.retries=0"]


def counts(record, kind="evaluation"):
    return {name: n for name, n in record.federation.items() if name.startswith(kind)}


@pytest.mark.parametrize(
    "settings",
    [
        ["training.clients_per_round=3", "algorithm.name=scaffold", "training.lr=0.1"],
        ["partition.kind=dirichlet", "training.evaluate_clients=2", "federation.reuse=false"],
        pytest.param(["algorithm.name=fedexp", "training.lr=0.1"], marks=pytest.mark.slow),
        pytest.param(
            ["model.name=resnet-nano", "model.norm=batch", "data.max_train=90", "data.max_test=20"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["scaffold", "some", "fedexp", "batch-norm"],
)
def test_nodes_give_the_simulations_scores_and_train_the_same(tmp_path, settings):
    settings = [*EVALUATE, *settings]
    ours, _ = federated(tmp_path, settings)
    theirs = simulated(settings)
    for record, expected in zip(ours.rounds(), theirs.rounds(), strict=True):
        asked = len(theirs.scores.clients)
        assert counts(record) == {"evaluation asked": asked, "evaluation answered": asked}
        assert record.clients_mean == pytest.approx(expected.clients_mean, abs=1e-6)
        assert_same_scores(ours.scores, theirs.scores)
    assert_same(ours, theirs)


def test_a_node_is_sent_each_state_once_and_again_if_it_lost_it(tmp_path):
    settings = [*THREE, "training.rounds=3"]
    ours, grid = federated(tmp_path, settings)
    plain, _ = federated(tmp_path / "plain", ["training.clients_per_round=3", "training.rounds=2"])
    whole, change = (record.down_bytes for record in plain.rounds())
    assert ours.step().down_bytes == whole + change, "the first state, and after the round its change"
    assert ours.step().down_bytes == change, "to evaluate; the round began with what was there"
    grid.workers[101] = type(grid.workers[101])()
    record = ours.step()
    assert record.federation["stale"] == 1
    assert record.down_bytes == change + whole // 3
    theirs = simulated(settings)
    list(theirs.rounds())
    assert_same(ours, theirs)
    assert_same_scores(ours.scores, theirs.scores)


def test_a_node_that_does_not_train_is_sent_the_model_alone(tmp_path):
    settings = ["partition.clients=6", "training.clients_per_round=1", "training.rounds=1", *EVALUATE]
    ours, grid = federated(tmp_path, settings)
    ours.step()
    asked = [message.content.config_records["fedadamw"] for message in grid.waiting.values()]
    forms = [request["form"] for request in asked if request["ask"] == "evaluate"]
    assert sorted(forms) == ["change", *["model"] * 5]


def test_refused_sums_are_counted_and_change_nothing(tmp_path):
    ours, grid = federated(tmp_path, [*THREE, "training.rounds=1", "federation.evaluate_quorum=1"])
    grid.score_lies = {101: LIES["nan"][0], 102: LIES["more-right"][0]}
    record = ours.step()
    assert record.federation == {
        **{"asked": 3, "answered": 3, "evaluation asked": 3, "evaluation answered": 1, "evaluation refused": 2},
        **{"evaluation refused: not-finite": 1, "evaluation refused: sums": 1},
    }
    assert record.rejected == 0, "their uploads count"
    theirs = simulated([*THREE, "training.rounds=1"])
    theirs.step()
    assert_same(ours, theirs)
    assert ours.scores.clients == [0]
    assert record.clients_mean == pytest.approx(theirs.scores.columns["accuracy"][0], abs=1e-6)
    first, second = read_events(tmp_path, "evaluation-refused")
    assert {(event["client"], event["reason"]) for event in (first, second)} == {(1, "not-finite"), (2, "sums")}
    (event,) = read_events(tmp_path, "evaluated")
    assert (event["round"], event["answers"], event["left_out"]) == (1, 1, "1, 2")


def test_a_late_node_is_left_out_named_and_does_not_delay_the_next_round(tmp_path):
    ours, grid = federated(tmp_path, [*THREE, "federation.evaluate_s=1"])
    ours.clients.sample(0)
    grid.silent, grid.silent_to = {101}, {"evaluate"}
    start = time.monotonic()
    record = ours.step()
    assert time.monotonic() - start < 15
    assert counts(record) == {"evaluation asked": 3, "evaluation answered": 2, "evaluation overdue": 1}
    assert ours.scores.clients == [0, 2]
    assert read_events(tmp_path, "evaluated")[0]["left_out"] == "1"
    grid.silent = set()
    record = ours.step()
    assert counts(record) == {"evaluation asked": 3, "evaluation answered": 3, "evaluation late": 1}


def test_absent_nodes_are_named_and_too_few_scores_stop_no_run(tmp_path):
    ours, grid = federated(tmp_path, [*THREE, "federation={quorum: 1, retries: 0, wait_s: 5}"])
    ours.clients.sample(0)
    del grid.configs[100], grid.configs[101]
    record = ours.step()
    assert record.clients_mean is None
    assert record.clients_metrics is None
    assert ours.scores is None
    assert counts(record)["evaluation unreachable"] == 2
    (event,) = read_events(tmp_path, "not-evaluated")
    assert (event["answers"], event["quorum"], event["left_out"]) == (1, 2, "0, 1")


def test_a_node_that_fails_is_asked_again(tmp_path):
    ours, grid = federated(tmp_path, [*THREE, "federation.retries=1"])
    answer, tried = grid.workers[100].answer, []

    def once(facts, arrays):
        if facts["ask"] == "evaluate" and not tried:
            tried.append(1)
            return {"error": "OSError: the disk is gone"}, {}
        return answer(facts, arrays)

    grid.workers[100].answer = once
    record = ours.step()
    assert counts(record)["evaluation answered"] == 3
    assert counts(record)["evaluation failed"] == 1


@pytest.mark.slow
def test_a_run_killed_while_it_evaluates_trains_the_same_after_a_resume(tmp_path):
    settings = [*THREE, "algorithm.name=scaffold", "training.lr=0.1"]
    experiment, grid = load("digits", [*COMMON, *settings]), LocalGrid(3, tmp_path / "state")
    honest = grid.pull_messages

    def lost(names):
        (name,) = names
        asked = grid.waiting[name].content.config_records["fedadamw"]
        if asked["ask"] == "evaluate" and asked["round"] == 2:
            raise ConnectionError("the SuperLink is gone")
        return honest(names)

    grid.pull_messages = lost
    with pytest.raises(ConnectionError):
        run(experiment, grid, tmp_path / "run")
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 1
    run(experiment, LocalGrid(3, tmp_path / "state"), tmp_path / "run", resume=True)
    theirs = simulated(settings)
    records = list(theirs.rounds())
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["train_loss"] for line in lines] == [record.train_loss for record in records]
    assert [line["test_loss"] for line in lines] == [record.test_loss for record in records]
    scores = read_lines(tmp_path / "run/client_scores.jsonl")
    assert [line["round"] for line in scores] == [1, 2]
    assert scores[-1]["accuracy"] == pytest.approx(theirs.scores.columns["accuracy"], abs=1e-6)


def test_a_node_with_very_many_samples_is_one_voice(tmp_path):
    """Client 2 reports 100 times the samples, all wrong: it counts for ten times the median."""
    ours, grid = federated(tmp_path, [*THREE, "training.rounds=1"])
    ours.clients.sample(0)
    registry = ours.clients.registry
    held_out = list(registry.held_out)
    told = [*held_out[:2], 100 * held_out[2]]
    registry.held_out, registry._seen = None, dict(enumerate(told))  # as of nodes with data of their own
    grid.score_lies[102] = sums_of(lambda sums: np.array([100 * sums[0], 300 * sums[0], 0.0]))
    record = ours.step()
    scores, most = ours.scores, 10 * sorted(held_out)[1]
    assert scores.samples == told
    weights = torch.tensor([*held_out[:2], most], dtype=torch.float64)
    expected = float((torch.tensor(scores.columns["accuracy"]).double() * weights).sum() / weights.sum())
    assert record.clients_weighted == pytest.approx(expected)
    assert record.clients_metrics["accuracy"] == pytest.approx(expected)
    assert read_events(tmp_path, "evaluated")[0]["capped"] == "2"
    assert scores.most == most


def test_sums_tell_counts_so_nodes_must_be_allowed_to_report_these(tmp_path):
    with pytest.raises(InputError, match=r"training.client_evaluation=1 needs federation.sample_counts=true"):
        federated(tmp_path, [*EVALUATE, "federation.sample_counts=false"])


def write_rows(path, head, rows):
    path.write_text("\n".join([head, *rows]) + "\n")
    return str(path)


def own_reviews(tmp_path):
    """Return settings of a run on nodes with reviews of their own, and the rows of these."""
    tiny_models.folder(tmp_path / "roberta", "roberta")
    head, *rows = Path(tiny_models.reviews(tmp_path / "reviews.csv")).read_text().splitlines()
    settings = [
        f"data={{task: text, source: {write_rows(tmp_path / 'server.csv', head, rows[:20])}}}",
        f"model={tmp_path / 'roberta'}",
        "training.client_evaluation=1",
        "training.clients_per_round=3",
        "partition.kind=nodes",
    ]
    return settings, head, rows[20:]


def test_scores_of_nodes_test_files_add_up_to_the_score_of_all_of_them(tmp_path):
    """The server's own test set is all nodes' test files, one after the other."""
    settings, head, rows = own_reviews(tmp_path)
    grid, sizes = LocalGrid(3, tmp_path / "state"), (3, 6, 11)
    parts = [rows[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(3)]
    for i, part in enumerate(parts):
        data = write_rows(tmp_path / f"node-{i}.csv", head, rows[20 + i :: 3])
        grid.configs[100 + i] |= {"data": data, "test": write_rows(tmp_path / f"test-{i}.csv", head, part)}
    union = write_rows(tmp_path / "union.csv", head, [row for part in parts for row in part])
    ours, _ = federated(tmp_path, [*settings, f"data.test_source={union}"], grid)
    record = ours.step()
    assert ours.scores.samples == list(sizes)
    assert list(record.clients_metrics) == ["loss", "accuracy", "f1"]
    assert record.clients_metrics["loss"] == pytest.approx(record.test_loss, rel=1e-6)
    assert record.clients_metrics["f1"] == pytest.approx(record.test_metrics["f1"], abs=1e-10)
    assert record.clients_weighted == pytest.approx(record.test_metrics["accuracy"], abs=1e-10)


def test_a_node_holds_out_a_share_of_its_data_that_no_run_trains_on(tmp_path):
    settings, head, rows = own_reviews(tmp_path)
    data = write_rows(tmp_path / "node.csv", head, rows)
    told = {"partition-id": 0, "data": data, "state-dir": str(tmp_path / "state"), "held-out": 0.25}
    facts = {"classes": ["0", "1"], "edges": None}
    runs = [load("digits", [*COMMON, *settings, f"seed={seed}"]) for seed in (0, 1)]
    found = [load_node_samples(run, open_pretrained(run), facts, told, 0) for run in runs]
    assert len(found[0].held_out) == 10
    assert sorted([*found[0].own, *found[0].held_out]) == list(range(40))
    assert found[0].own.tolist() == found[1].own.tolist()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"held-out": 1}, "this node's held-out is 1: give a share of its data, from 0 to below 1"),
        ({"held-out": "half"}, "this node's held-out is 'half'"),
        ({"held-out": 0.2, "test": "t.csv"}, "this node has both test and held-out: give one"),
        ({"test": 3}, "this node's test is 3: give a path"),
        ({"test": "missing.csv"}, "its test data"),
    ],
)
def test_a_node_says_what_is_wrong_with_its_held_out_data(tmp_path, config, message):
    settings, head, rows = own_reviews(tmp_path)
    told = {"partition-id": 0, "data": write_rows(tmp_path / "node.csv", head, rows), **config}
    facts = {"classes": ["0", "1"], "edges": None}
    experiment = load("digits", [*COMMON, *settings])
    with pytest.raises((InputError, OtherDataError), match=re.escape(message)):
        load_node_samples(experiment, open_pretrained(experiment), facts, told, 0)


def test_a_node_of_a_rehearsal_takes_no_data_of_its_own(tmp_path):
    told = {"partition-id": 0, "state-dir": str(tmp_path), "held-out": 0.2}
    with pytest.raises(
        InputError, match="this node has held-out of its own, and partition.kind='mix' gives it its data"
    ):
        load_node_samples(load("digits", [*COMMON, *EVALUATE]), None, {}, told, 0)


def test_a_metric_that_needs_all_predictions_is_refused_by_name_and_pearson_is_not(tmp_path):
    settings, head, rows = own_reviews(tmp_path)
    rows = [f"{row.split(',')[0]},{i % 7 / 2},{i}" for i, row in enumerate(rows)]
    settings += [f"data.source={write_rows(tmp_path / 'server.csv', head, rows[:20])}", "data.validation=0.5"]
    grid = LocalGrid(3, tmp_path / "state")
    with pytest.raises(InputError, match=r"^training.client_evaluation: spearman needs all predictions"):
        federated(tmp_path / "with-data", settings, grid)
    for i in range(3):
        grid.configs[100 + i] |= {"data": write_rows(tmp_path / f"node-{i}.csv", head, rows[i::3]), "held-out": 0.5}
    without = [
        "data.source=digits",
        "data.validation=0",
        "data.classes=[]",
        "data.text_column=text",
        "data.label_column=label",
    ]
    ours, _ = federated(tmp_path, [*settings, *without], grid)
    record = ours.step()
    assert list(record.clients_metrics) == ["loss", "pearson"]
    assert record.test_metrics is None
    assert -1 <= record.clients_metrics["pearson"] <= 1


def test_nodes_answer_all_prompts_that_they_hold_out_as_in_the_simulation(tmp_path):
    tiny_models.folder(tmp_path / "chat", "llama", template=tiny_models.TEMPLATE)
    rows = [f"the film was {('dull', 'great')[i % 3 == 0]},{('bad', 'good')[i % 3 == 0]}" for i in range(30)]
    source = write_rows(tmp_path / "reviews.csv", "text,label", rows)
    settings = [
        f"data={{task: causal-lm, source: {source}, validation: 0.2}}",
        "data.prompt='Good or bad? {text}'",
        "data.response='{label}'",
        "data.label_column=label",
        "data.metrics=choice",
        "data.choices=[bad, good]",
        "data.answers=2",
        f"model={tmp_path / 'chat'}",
        "partition.kind=iid",
        "training.rounds=1",
        *EVALUATE,
    ]
    ours, _ = federated(tmp_path, settings)
    record, theirs = ours.step(), simulated(settings)
    theirs.step()
    assert list(record.clients_metrics) == ["loss", "choice", "accuracy", "perplexity"]
    assert_same_scores(ours.scores, theirs.scores)
