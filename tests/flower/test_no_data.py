"""Federations whose server has no data: the settings say what the nodes' data are, and nodes say what does not fit."""

import csv
import json
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image
from support import tiny_models

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from flwr.app import Array, ConfigRecord, Message, RecordDict
from support.federated import COMMON, assert_same, federated
from support.grids import LocalGrid

from fedadamw.data.image_task import channel_statistics
from fedadamw.data.pixel_sums import sum_pixels
from fedadamw.flower.client_app import pack_reply
from fedadamw.flower.node.local_data import load_node_samples
from fedadamw.flower.protocol import OTHER_DATA, PIXELS, REQUEST, OtherDataError
from fedadamw.flower.server.pixels import PixelSums
from fedadamw.flower.server.replies import read_numbers
from fedadamw.flower.server_app import run
from fedadamw.flower.wire import RefusedError
from fedadamw.prepare.problem import open_pretrained
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load
from fedadamw.trained.evaluate import evaluate
from fedadamw.trained.export import export
from fedadamw.trained.load import open_run, open_trained
from fedadamw.validation import InputError

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


def records_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_three_csv_files_train_without_a_sample_on_the_server(tmp_path):
    settings, grid = of_reports(tmp_path)
    for config in grid.configs.values():
        config["held-out"] = 0.25
    out = tmp_path / "run"
    run(load("digits", [*COMMON, *settings, "training.client_evaluation=2", "keep_best=true"]), grid, out)
    assert [record["clients"] for record in records_of(out)] == [3, 3]
    assert all(record["test_loss"] is None and record["test_metrics"] is None for record in records_of(out))
    assert list(records_of(out)[1]["clients_metrics"]) == ["loss", "accuracy", "f1"]
    data = json.loads((out / "manifest.json").read_text())["data"]
    assert (data["classes"], data["train"]["samples"], data["test"]["samples"]) == (["ok", "alarm"], 0, 0)
    assert "<th>data.source" not in (out / "report.html").read_text()

    trained = open_run(out, best=True)
    export(trained, tmp_path / "export")
    card = (tmp_path / "export/README.md").read_text()
    assert "| mean accuracy of clients | " in card
    assert "| data | text, of classes ok, alarm |" in card
    assert "| training data, on the nodes | 54, as the nodes report | not known to the server |" in card
    with pytest.raises(InputError, match="the run's server had no data .* with --data"):
        evaluate(trained)
    elsewhere = [("data.source", write_reports(tmp_path / "new.csv", ("ok", "alarm")))]
    ours, count = evaluate(open_run(out, elsewhere))
    assert (ours, count) == (evaluate(open_trained(tmp_path / "export", elsewhere))[0], 24)


def test_a_node_whose_data_do_not_fit_is_named_before_the_first_round(tmp_path, capfd, monkeypatch):
    """Once its data are corrected it joins, without a restart."""
    settings, grid = of_reports(tmp_path, _1={"labels": ("ok", "broken")})
    ours, _ = federated(tmp_path, settings, grid)
    assert ours.step().clients == 2
    (stranger,) = events_of(tmp_path / "run", "stranger")
    detail = "client 1: column 'label' has 'broken'; the run has the classes ok, alarm"
    assert (stranger["node"], stranger["reason"], stranger["detail"]) == ("101", "other-data", detail)
    assert detail in capfd.readouterr().err

    write_reports(tmp_path / "site-1.csv", ("ok", "alarm"))
    registry = ours.clients.registry
    monkeypatch.setattr(registry, "_left_out", {})  # as after a minute
    until = time.monotonic() + 60
    while 1 not in registry.poll_online() and time.monotonic() < until:
        time.sleep(0.1)
    assert sorted(registry.joined) == [0, 1, 2]


@pytest.mark.parametrize(
    ("file", "why"),
    [
        ({"labels": ("OK", "Alarm")}, None),
        ({"labels": ("ok",)}, None),
        ({"columns": ("report", "label")}, None),
        ({"labels": ("ok", "", "alarm")}, "column 'label' is empty in row 2 of 24"),
        (
            {"columns": ("text", "class")},
            "its data: no label column found among text, class; name it with data.label_col",
        ),
        ({"columns": ("label", "text")}, "column 'label' holds many values that are no class: is it the labels'"),
        ({"labels": (0, 1)}, "column 'label' has '0', '1'; the run has the classes ok, alarm"),
        ({"labels": (0.5, 1)}, "column 'label' has '0.5', '1'; the run has"),
        ({"labels": ("x" * 99, "ok")}, f"column 'label' has '{'x' * 40}'; the run has"),
        ({"count": 0}, "its data: it has no rows|its data could not be read"),
    ],
)
def test_a_node_says_in_what_its_data_do_not_fit(tmp_path, file, why):
    settings, grid = of_reports(tmp_path, _0=file)
    written = [line.split(",")[-1] for line in (tmp_path / "site-0.csv").read_text().splitlines()[1:]]
    experiment = load("digits", [*COMMON, *settings])
    about = {"classes": ["ok", "alarm"], "edges": None}
    load_own = partial(load_node_samples, experiment, open_pretrained(experiment), about, grid.configs[100], 0)
    if why is None:
        texts, _, samples, _ = load_own()
        assert (texts.classes, len(samples)) == (("ok", "alarm"), 24)
        assert texts.labels.tolist() == [0 if word.lower() == "ok" else 1 for word in written]
    else:
        with pytest.raises(OtherDataError, match=why) as refused:
            load_own()
        assert str(tmp_path) not in str(refused.value)


def test_classes_that_are_numbers_have_the_order_of_the_settings(tmp_path):
    settings, grid = of_reports(tmp_path, _0={"labels": (0, 1, 1)})
    experiment = load("digits", [*COMMON, *settings, "data.classes=[1, 0]"])
    about = {"classes": ["1", "0"], "edges": None}
    texts = load_node_samples(experiment, open_pretrained(experiment), about, grid.configs[100], 0).train
    assert texts.labels.tolist() == [1, 0, 0] * 8


@pytest.mark.parametrize(
    ("settings", "columns", "why"),
    [
        (["data.text_column=text"], ("text", "label"), None),
        ([], ("text", "label"), "its data has no column 'messages'; it has text, label; the run has conversations"),
        (["data.text_column=report"], ("text", "label"), "its data has no column 'report'; it has text, label"),
        (["data.prompt={text}", "data.response={answer}"], ("text", "label"), "its data has no column 'answer'"),
        (["data.prompt_column=text", "data.response_column=label"], ("text", "label"), None),
    ],
)
def test_a_node_says_in_what_its_texts_do_not_fit_a_language_model(tmp_path, settings, columns, why):
    place = tiny_models.folder(tmp_path / "gpt2", "gpt2")
    path = write_reports(tmp_path / "site.csv", columns=columns)
    given = ["data={task: causal-lm, classes: []}", f"model={place}", "partition={kind: nodes, clients: 3}"]
    experiment = load("digits", [*COMMON, *given, *settings])
    facts = prepare(experiment, remote=True).facts
    assert facts["prompts"] == (settings[:1] != ["data.text_column=text"] and "report" not in str(settings))
    config = {"partition-id": 0, "data": path}
    if why is None:
        texts = load_node_samples(experiment, open_pretrained(experiment), facts, config, 0).train
        assert len(texts) == 24
        assert bool((texts.marks == 0).any()) == facts["prompts"]
    else:
        with pytest.raises(OtherDataError, match=why):
            load_node_samples(experiment, open_pretrained(experiment), facts, config, 0)


def write_images(folder, seed, **counts):
    """Write `counts[name]` grey images of each class `name`; return the folder and its pixels."""
    generator, pixels = np.random.default_rng(seed), []
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels.append(generator.integers(0, 200, (8, 8), dtype=np.uint8))
            Image.fromarray(pixels[-1]).save(folder / name / f"{i}.png")
    return str(folder), np.stack(pixels)


def of_images(tmp_path, *more):
    """Return settings, a grid of three nodes with their own images, and all pixels (n, 1, 8, 8)."""
    grid, pixels = LocalGrid(3, tmp_path / "state"), []
    for i, counts in enumerate(({"cat": 3, "owl": 4}, {"owl": 5}, {"dog": 6, "cat": 1})):
        grid.configs[100 + i]["data"], own = write_images(tmp_path / f"site-{i}", i, **counts)
        pixels.append(own)
    form = "data={classes: [owl, cat, dog, bat], image_size: 8, image_mode: grey}"
    common = ["partition={kind: nodes, clients: 3}", "training.clients_per_round=3", "federation.quorum=2"]
    return [form, *common, *more], grid, np.concatenate(pixels)[:, None]


def test_a_node_says_in_what_its_images_do_not_fit(tmp_path):
    settings, grid, _ = of_images(tmp_path)
    experiment = load("digits", [*COMMON, *settings])
    about = {"classes": ["owl", "cat", "dog", "bat"], "shape": [1, 8, 8], "fit": "crop"}
    wrong = {
        write_images(tmp_path / "horses", 5, owl=2, horse=1)[
            0
        ]: "column 'label' has 'horse'; the run has the classes owl",
        write_reports(tmp_path / "reports.csv"): "its data: no image column found among text, label; name it with",
        str(tmp_path / "nothing"): "its data: no such folder",
    }
    for place, why in wrong.items():
        config = {**grid.configs[100], "data": place}
        with pytest.raises(OtherDataError, match=why) as refused:
            load_node_samples(experiment, None, about, config, 0)
        assert str(tmp_path) not in str(refused.value)
    larger = tmp_path / "larger/owl"
    larger.mkdir(parents=True)
    Image.new("RGB", (30, 20), "red").save(larger / "0.png")
    config = {**grid.configs[100], "data": str(larger.parent)}
    assert load_node_samples(experiment, None, about, config, 0).train.pixels.shape == (1, 1, 8, 8)


@pytest.mark.parametrize("told", [{}, {"why": b"bytes"}, {"client": 3.5, "why": [1, 2]}, {"why": "x" * 10**5}])
def test_whatever_a_node_tells_of_its_data_becomes_a_short_reason(told):
    reply = Message(RecordDict({OTHER_DATA: ConfigRecord(told)}), reply_to=Message(RecordDict(), 100, "query"))
    with pytest.raises(RefusedError) as refused:
        read_numbers(reply)
    assert refused.value.reason == "other-data"
    assert len(refused.value.detail) <= 310


def test_mean_and_deviation_of_the_pixels_are_those_of_all_nodes_together_and_kept(tmp_path):
    settings, grid, pixels = of_images(tmp_path, "training.schedule=constant", "training.steps=1")
    run(load("digits", [*COMMON, *settings, "training.rounds=1"]), grid, tmp_path / "run")
    data = json.loads((tmp_path / "run/manifest.json").read_text())["data"]
    mean, std = channel_statistics(pixels)
    assert (data["mean"], data["std"]) == (pytest.approx(mean, rel=1e-12), pytest.approx(std, rel=1e-12))
    assert data["classes"] == ["owl", "cat", "dog", "bat"]

    assert (
        "The server has no data to evaluate on; with training.client_evaluation"
        in (tmp_path / "run/report.html").read_text()
    )
    export(open_run(tmp_path / "run"), tmp_path / "export")
    assert "| not evaluated: the server has no data | - |" in (tmp_path / "export/README.md").read_text()

    asked = len(grid.waiting)
    run(load("digits", [*COMMON, *settings]), grid, tmp_path / "run", resume=True)
    told = [message.content.config_records[REQUEST] for message in list(grid.waiting.values())[asked:]]
    assert {json.loads(request["about"])["mean"][0] for request in told} == {data["mean"][0]}
    assert [record["clients"] for record in records_of(tmp_path / "run")] == [3, 3]


@pytest.mark.slow
def test_images_of_nodes_train_as_those_that_the_server_has_a_sample_of(tmp_path):
    """With the sample's mean and standard deviation given, and its classes, all numbers are the same."""
    settings, grid, _ = of_images(tmp_path)
    sample, _ = write_images(tmp_path / "sample", 9, owl=2, cat=2, dog=2, bat=2)
    with_sample = [f"data={{source: {sample}, validation: 0.5, image_size: 8, image_mode: grey}}", *settings[1:]]
    theirs, _ = federated(tmp_path / "a", with_sample, grid)
    form = theirs.clients.registry.messenger.facts["about"]
    facts = json.loads(form)
    given = [f"data.classes={facts['classes']}", f"data.mean={facts['mean']}", f"data.std={facts['std']}"]
    ours, _ = federated(tmp_path / "b", [*settings, *given], grid)
    for _ in range(2):
        assert ours.step().train_loss == theirs.step().train_loss
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (lambda sums: sums * 2, "pixels"),
        (lambda sums: sums * [[1, 1, 1000]], "pixels"),
        (lambda sums: sums[:, :2], "wrong-shape"),
        (lambda sums: sums.astype(float), "wrong-dtype"),
    ],
)
def test_sums_that_no_images_have_leave_a_node_out(tmp_path, lie, reason):
    sums = PixelSums((1, 8, 8), 1000)
    own = sum_pixels(np.full((5, 1, 8, 8), 7, np.uint8))
    asked = Message(RecordDict(), 100, "query")
    sums.add(0, pack_reply(asked, {"client": 0}, {PIXELS: Array(own)}), 5)
    with pytest.raises(RefusedError, match=reason):
        sums.add(1, pack_reply(asked, {"client": 1}, {PIXELS: Array(lie(own))}), 5)
    with pytest.raises(RefusedError, match="it has no sums of its pixels"):
        sums.add(1, pack_reply(asked, {"client": 1}, {}), 5)
    assert sums.pool([0]) == ((7 / 255,), (0.001,))


def test_nodes_that_do_not_tell_how_many_images_they_have_need_a_given_mean(tmp_path):
    settings, grid, _ = of_images(tmp_path, "federation.sample_counts=false")
    with pytest.raises(InputError, match="sample_counts=false: sums of pixels tell how many images .* give data.mean"):
        federated(tmp_path, settings, grid)
