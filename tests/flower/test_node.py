"""A node's own data, device, memory and errors."""

import json
import time
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny_models

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from support.federated import COMMON, assert_same, federated, simulated
from support.grids import LocalGrid

from fedadamw.algorithms.plugins import find_plugins
from fedadamw.engine.clients import QuorumError
from fedadamw.flower.node import config, node
from fedadamw.flower.node.worker import Worker
from fedadamw.flower.server_app import run
from fedadamw.settings.load import load
from fedadamw.trained.export import export
from fedadamw.trained.load import open_run
from fedadamw.validation import InputError

pytestmark = pytest.mark.usefixtures("restore_threads")


def test_each_node_trains_on_its_own_data(tmp_path, monkeypatch):
    """Each node has its own CSV file of reviews."""
    tiny_models.folder(tmp_path / "roberta", "roberta")
    tiny_models.reviews(tmp_path / "reviews.csv")
    rows = (tmp_path / "reviews.csv").read_text().splitlines()
    head, body = rows[0], rows[1:]
    server, parts = body[:40], [body[40 + i :: 3] for i in range(3)]
    for name, lines in {"server": server, **{f"node-{i}": part for i, part in enumerate(parts)}}.items():
        (tmp_path / f"{name}.csv").write_text("\n".join([head, *lines]) + "\n")
    settings = [
        "data={task: text, source: %s, validation: 0.5}" % (tmp_path / "server.csv"),
        "model=roberta",
        "partition.kind=nodes",
        "training.weighting=samples",
        "training.clients_per_round=3",
    ]
    grid = LocalGrid(3, tmp_path / "state")
    for i in range(3):
        grid.configs[100 + i] |= {"data": str(tmp_path / f"node-{i}.csv")}
    monkeypatch.chdir(tmp_path)
    ours, _ = federated(tmp_path, settings, grid)
    facts = ours.clients.registry.messenger.facts
    assert "name: ./roberta" in facts["settings"]  # so that no node takes the server's folder for a hub id
    losses = [record.test_loss for record in ours.rounds()]
    assert losses[-1] < losses[0]
    assert {i: c.samples for i, c in ours.clients.registry.joined.items()} == dict(enumerate(map(len, parts)))


def test_server_and_nodes_run_an_algorithm_of_another_package(tmp_path, put_package):
    put_package("fed-avgx", {"fedavgx": "fed_avgx:FedAvgX"})
    settings = ["algorithm=fedavgx", "algorithm.speed=2", "training.lr=0.1"]
    ours, _ = federated(tmp_path, settings)
    theirs = simulated(settings)
    assert [record.clients for record in ours.rounds()] == [2, 2]
    list(theirs.rounds())
    assert_same(ours, theirs)


def test_a_node_without_the_algorithms_package_says_so(tmp_path, put_package):
    site = put_package("fed-avgx", {"fedavgx": "fed_avgx:FedAvgX"})
    settings, told = (
        load("digits", [*COMMON, "algorithm=fedavgx"]).to_yaml(),
        {"partition-id": 0, "state-dir": str(tmp_path)},
    )
    (site / "fed_avgx-0.1.dist-info" / "entry_points.txt").unlink()
    find_plugins.cache_clear()
    with pytest.raises(InputError, match="'fedavgx' is unknown.* or install the package that has it"):
        node.load_node(settings, "{}", told, "run")


def test_a_node_without_data_reports_it(tmp_path):
    ours, grid = federated(tmp_path, ["partition.kind=nodes", "federation={quorum: 1, wait_s: 1}"])
    grid.configs[100]["data"] = str(tmp_path / "nothing")
    with pytest.raises(QuorumError):
        ours.step()
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    found = {event["node"]: event["detail"] for event in events if event["event"] == "stranger"}
    assert "no such" in found["100"].lower()
    assert "give --node-config" in found["101"]


@pytest.mark.parametrize("given", ["mps", "xpu:0", "cuda:x", "cuda:99", 1, True])
def test_a_node_checks_the_device_of_its_configuration(tmp_path, given):
    settings, told = load("digits", COMMON).to_yaml(), {"partition-id": 0, "state-dir": str(tmp_path)}
    assert config.read_device(told) == "auto"
    assert config.read_device({**told, "device": "cuda:1"}) == "cuda:1"
    with pytest.raises(InputError, match="not a device to train on; use one of auto, cpu, cuda|finds no such GPU here"):
        node.load_node(settings, "{}", {**told, "device": given}, "run")


def test_a_worker_that_runs_out_of_memory_releases_all_its_nodes(monkeypatch):
    class Full:
        def train(self, arrays, facts):
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    made, worker, given_back = [Full()], Worker(), []
    full = weakref.ref(made[0])
    monkeypatch.setattr(worker, "_load", lambda _: made.pop())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(full() is None))
    worker._nodes["of another run"] = None
    about = dict.fromkeys(("settings", "about", "config", "federation", "unequal_steps"), "")
    numbers, _ = worker.answer({"ask": "train", "came": time.time(), "seconds": 60, **about}, {})
    assert "CUBLAS_STATUS_ALLOC_FAILED" in numbers["error"]
    assert given_back == [True]
    assert not worker._nodes


def write_images(folder, **counts):
    """Write `counts[name]` images of each class `name`; return the folder."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return str(folder)


def with_images(tmp_path, *more):
    """Return settings, and a grid of three nodes that have their own images."""
    source = write_images(tmp_path / "server", cat=6, dog=6, owl=6)
    grid = LocalGrid(3, tmp_path / "state")
    for i, classes in enumerate(({"cat": 6}, {"owl": 6}, {"owl": 6, "dog": 6})):
        grid.configs[100 + i]["data"] = write_images(tmp_path / f"node-{i}", **classes)
    own = ["partition.kind=nodes", "training.clients_per_round=3"]
    return [f"data={{source: {source}, validation: 0.5}}", *own, *more], grid


def test_a_node_may_have_images_of_only_one_class(tmp_path):
    settings, grid = with_images(tmp_path)
    ours, _ = federated(tmp_path, settings, grid)
    assert ours.step().federation == {"asked": 3, "answered": 3}
    assert [ours.clients.registry.joined[i].samples for i in range(3)] == [6, 6, 12]


@pytest.mark.parametrize(("counts", "samples"), [("true", "24, as the nodes report"), ("false", "not reported")])
def test_a_model_card_counts_the_nodes_samples_only_if_they_report_them(tmp_path, counts, samples):
    federation = f"federation={{quorum: 3, wait_for: 3, wait_s: 60, sample_counts: {counts}}}"
    settings, grid = with_images(tmp_path, "partition.clients=5", "training.rounds=1", federation)
    run(load("digits", [*COMMON, *settings]), grid, tmp_path / "run")
    export(open_run(tmp_path / "run"), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "# image, trained by fedadamw over 3 clients" in card
    assert f"| training data, on the nodes | {samples} | not known to the server |" in card
    assert "| the server's own, not trained on | 9 | " in card
    assert "| partition | each of 3 nodes its own data |" in card
    assert "| clients | 5, 3 a round; answers of 3 counted, partitioned nodes |" in card
    nodes = json.loads((tmp_path / "out/fedadamw.json").read_text())["nodes"]
    assert nodes == {"counted": 3, "samples": 24 if counts == "true" else None}
    assert str(tmp_path) not in card
    report = (tmp_path / "run/report.html").read_text()
    assert "data.server&#x27;s own, not trained on.samples<td>9" in report
    assert "data.train" not in report


@pytest.mark.filterwarnings("ignore:BatchNorm needs two samples")
def test_a_node_with_too_few_samples_for_batch_norm_fails_and_keeps_running(tmp_path):
    """With 8 x 8 pixels ResNet's last BatchNorm has one position, so it averages over the batch only."""
    source = write_images(tmp_path / "server", cat=6, owl=6)
    settings = [
        f"data={{source: {source}, validation: 0.5}}",
        "model={name: resnet-nano, norm: batch}",
        "partition.kind=nodes",
        "training={rounds: 1, clients_per_round: 3, epochs: 1, batch_size: 4, lr: 0.001}",
        "federation={quorum: 2, retries: 0}",
    ]
    grid = LocalGrid(3, tmp_path / "state")
    for i, count in enumerate((1, 5, 4)):
        grid.configs[100 + i]["data"] = write_images(tmp_path / f"node-{i}", owl=count)
    ours, _ = federated(tmp_path, settings, grid)
    assert ours.step().federation == {"asked": 3, "answered": 2, "failed": 1, "failed: failed": 1}
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    (detail,) = [event["detail"] for event in events if event["event"] == "failed"]
    assert "client 0 has a single sample, and this model's BatchNorm" in detail


def test_nodes_that_do_not_report_their_sample_counts_train_the_same(tmp_path):
    ours, _ = federated(tmp_path, ["federation.sample_counts=false"])
    list(ours.rounds())
    theirs = simulated([])
    list(theirs.rounds())
    assert_same(ours, theirs)
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    assert all(event["samples"] is None for event in events if event["event"] == "joined")
    with pytest.raises(InputError, match="sample_counts=false needs training.weighting=uniform"):
        federated(tmp_path / "b", ["federation.sample_counts=false", "training.weighting=samples"])
