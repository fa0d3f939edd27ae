"""Federations whose server has no data: the settings say what the nodes' data are, and nodes say what does not fit."""

import csv
import json

import pytest
from support import tiny_models

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from support.federated import COMMON
from support.grids import LocalGrid

from fedadamw.flower.server_app import run
from fedadamw.settings.load import load

pytestmark = pytest.mark.usefixtures("restore_threads")


def write_reports(path, labels=("alarm", "ok"), count=24, columns=("text", "label")):
    """Write a CSV file of reports, each with the next label."""
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        for i in range(count):
            label = labels[i % len(labels)]
            rows.writerow([f"the film was {'bad' if label == 'alarm' else 'good'} {i}", label])
    return str(path)


def of_reports(tmp_path, **files):
    """Return settings, and a grid of three nodes with their own CSV files. files: `_1={...}` changes node 1's."""
    tiny_models.folder(tmp_path / "roberta", "roberta")
    grid = LocalGrid(3, tmp_path / "state")
    for i in range(3):
        grid.configs[100 + i]["data"] = write_reports(tmp_path / f"site-{i}.csv", **files.get(f"_{i}", {}))
    settings = [
        "data={task: text, classes: [ok, alarm]}",
        f"model={tmp_path / 'roberta'}",
        "partition={kind: nodes, clients: 3}",
        "training.clients_per_round=3",
        f"federation={{wait_for: {3 - len(files)}, quorum: 2}}",
    ]
    return settings, grid


def events_of(folder, kind):
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_three_csv_files_train_without_a_sample_on_the_server(tmp_path):
    settings, grid = of_reports(tmp_path)
    run(load("digits", [*COMMON, *settings]), grid, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["clients"] for line in lines] == [3, 3]
    assert all(line["test_loss"] is None and line["test_metrics"] is None for line in lines)
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["data"]["classes"] == ["ok", "alarm"]
    assert manifest["data"]["train"]["samples"] == manifest["data"]["test"]["samples"] == 0


@pytest.mark.parametrize(
    ("file", "detail"),
    [
        ({"labels": ("ok", "broken")}, "client 1: column 'label' has 'broken'; the run has the classes ok, alarm"),
    ],
)
def test_a_node_whose_data_do_not_fit_is_named_before_the_first_round(tmp_path, file, detail):
    settings, grid = of_reports(tmp_path, _1=file)
    run(load("digits", [*COMMON, *settings]), grid, tmp_path / "run")
    (stranger,) = events_of(tmp_path / "run", "stranger")
    assert (stranger["reason"], stranger["detail"]) == ("other-data", detail)
