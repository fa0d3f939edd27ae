"""Over a Grid come the simulation's numbers: every algorithm, codec and adapter, own data, a run of its own."""

import json
import socket
import urllib.request

import numpy as np
import pytest
import tiny_models
import torch
from cases import CASES
from PIL import Image

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from federated import COMMON, LIES, assert_same, federated, simulated
from grids import Here

from fedadamw import checkpoint
from fedadamw.experiment import load
from fedadamw.flower import certs
from fedadamw.flower.monitor import Monitor
from fedadamw.flower.rounds import QuorumError
from fedadamw.flower.server_app import run
from fedadamw.validation import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", CASES)
def test_every_algorithm_comes_to_the_loops_numbers(tmp_path, name):
    case = CASES[name]
    settings = [f"algorithm={json.dumps({'name': case.name, **case.settings})}", f"training.lr={case.lr}"]
    ours, _ = federated(tmp_path, settings)
    theirs = simulated(settings)
    for record, expected in zip(ours.rounds(), theirs.rounds(), strict=True):
        assert record.federation == {"asked": 2, "answered": 2}
        assert record.train_loss == expected.train_loss
        assert record.test_metrics == expected.test_metrics
        assert record.up_bytes == expected.up_bytes
        assert record.down_bytes <= expected.down_bytes
    assert_same(ours, theirs)


@pytest.mark.parametrize("name", ["fedadamw-mean-v", "fedadamw-vm", "fedcm", "fedlada", "fedmuon-rank", "fedavg"])
def test_a_client_with_the_last_state_is_sent_what_changed(tmp_path, name):
    case = CASES[name]
    algorithm = f"algorithm={json.dumps({'name': case.name, **case.settings})}"
    settings = [algorithm, f"training.lr={case.lr}", "training.rounds=3", "training.clients_per_round=3"]
    ours, grid = federated(tmp_path, settings)
    first, second = ours.step(), ours.step()
    grid.workers[101] = type(grid.workers[101])()  # which remembers nothing
    third = ours.step()
    theirs = simulated(settings)
    whole = [record.down_bytes for record in theirs.rounds()]
    assert_same(ours, theirs)
    assert first.down_bytes == whole[0]
    if name == "fedavg":
        assert second.down_bytes == third.down_bytes == whole[0]
        return
    assert second.down_bytes == second.up_bytes < whole[1]
    assert third.federation == {"asked": 4, "answered": 3, "stale": 1, "stale: stale": 1}
    assert third.down_bytes == second.down_bytes + whole[2] // 3
    ours, _ = federated(tmp_path / "b", [*settings, "federation.reuse=false"])
    assert [record.down_bytes for record in ours.rounds()] == whole


@pytest.mark.parametrize(
    "settings",
    [
        ["training.weighting=samples", "partition.kind=dirichlet"],
        ["model.name=resnet18", "model.norm=batch", "training.rounds=1", "data.max_train=90", "data.max_test=20"],
        ["training.epochs=1", "partition.kind=dirichlet", "algorithm.name=scaffold", "training.lr=0.1"],
    ],
    ids=["weights", "batch-norm", "epochs"],
)
def test_so_do_weights_statistics_and_unequal_steps(tmp_path, settings):
    ours, _ = federated(tmp_path, settings)
    theirs = simulated(settings)
    for _ in zip(ours.rounds(), theirs.rounds(), strict=True):
        pass
    assert_same(ours, theirs)


@pytest.mark.parametrize("upload", ["bfloat16", "int8", "top-k"])
@pytest.mark.parametrize("name", ["fedadamw-mean-v", "fedadamw-vm", "scaffold"])
def test_codecs_come_to_the_simulations_numbers_and_bytes(tmp_path, upload, name):
    case = CASES[name]
    algorithm = f"algorithm={json.dumps({'name': case.name, **case.settings})}"
    settings = [algorithm, f"training.lr={case.lr}", f"training.upload={upload}", "training.rounds=3"]
    ours, _ = federated(tmp_path, settings)
    theirs = simulated(settings)
    for record, expected in zip(ours.rounds(), theirs.rounds(), strict=True):
        assert record.up_bytes == expected.up_bytes
    assert_same(ours, theirs)


@pytest.mark.parametrize("aggregate", ["factors", "frozen-a", "exact"])
def test_adapters_of_a_text_model(tmp_path, aggregate):
    tiny_models.folder(tmp_path / "roberta", "roberta")
    tiny_models.reviews(tmp_path / "reviews.csv")
    settings = [
        "data={task: text, source: %s, validation: 0.2}" % (tmp_path / "reviews.csv"),
        f"model={tmp_path / 'roberta'}",
        "lora={r: 4, target_modules: [query, value]}",
        f"lora.aggregate={aggregate}",
    ]
    ours, _ = federated(tmp_path, settings)
    theirs = simulated(settings)
    for _ in zip(ours.rounds(), theirs.rounds(), strict=True):
        pass
    assert_same(ours, theirs)


def test_each_node_trains_on_its_own_folder(tmp_path, monkeypatch):
    """Parts of the digits as each node's own Parquet, classes by name: the loop's numbers on the same partition."""
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
    grid = Here(3, tmp_path / "state")
    for i in range(3):
        grid.configs[100 + i] |= {"data": str(tmp_path / f"node-{i}.csv")}
    monkeypatch.chdir(tmp_path)
    ours, _ = federated(tmp_path, settings, grid)
    assert (
        "name: ./roberta" in ours.remote.members.post.facts["settings"]
    )  # no node takes a folder of the server for a hub id
    losses = [record.test_loss for record in ours.rounds()]
    assert losses[-1] < losses[0]
    assert [known.samples for _, known in sorted(ours.remote.members.known.items())] == [len(part) for part in parts]


def test_a_node_without_its_data_says_so(tmp_path):
    ours, grid = federated(tmp_path, ["partition.kind=nodes", "federation={quorum: 1, wait_s: 1}"])
    grid.configs[100]["data"] = str(tmp_path / "nothing")
    with pytest.raises(QuorumError):
        ours.step()
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    found = {event["node"]: event["detail"] for event in events if event["event"] == "stranger"}
    assert "no such" in found["100"].lower()
    assert "give --node-config" in found["101"]


def test_a_node_may_have_images_of_one_class_alone(tmp_path):
    def images(folder, *classes):
        for name in classes:
            (tmp_path / folder / name).mkdir(parents=True)
            for i in range(6):
                pixels = np.random.default_rng(i).integers(0, 255, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / name / f"{i}.png")
        return str(tmp_path / folder)

    source = images("server", "cat", "dog", "owl")
    settings = [f"data={{source: {source}, validation: 0.5}}", "partition.kind=nodes", "training.clients_per_round=3"]
    grid = Here(3, tmp_path / "state")
    for i, classes in enumerate((["cat"], ["owl"], ["owl", "dog"])):
        grid.configs[100 + i]["data"] = images(f"node-{i}", *classes)
    ours, _ = federated(tmp_path, settings, grid)
    assert ours.step().federation == {"asked": 3, "answered": 3}
    assert [ours.remote.members.known[i].samples for i in range(3)] == [6, 6, 12]


def test_nodes_that_tell_no_counts(tmp_path):
    ours, _ = federated(tmp_path, ["federation.sample_counts=false"])
    list(ours.rounds())
    theirs = simulated([])
    list(theirs.rounds())
    assert_same(ours, theirs)
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    assert all(event["samples"] is None for event in events if event["event"] == "joined")
    with pytest.raises(InputError, match="sample_counts=false needs training.weighting=uniform"):
        federated(tmp_path / "b", ["federation.sample_counts=false", "training.weighting=samples"])


def test_a_monitor_sees_the_run(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    experiment = load("digits", [*COMMON, "training.evaluate_every=1"])
    lies = {2: LIES["nan"][0]}
    with Monitor(port, "127.0.0.1") as monitor:
        run(experiment, Here(3, tmp_path / "state", lies), tmp_path / "run", monitor=monitor)
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    numbers = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert float(numbers["fedadamw_round"]) == 2
    assert float(numbers["fedadamw_clients_online"]) == 3
    assert float(numbers['fedadamw_score{metric="accuracy"}']) == records[-1]["test_metrics"]["accuracy"]
    assert float(numbers['fedadamw_sent_bytes_total{direction="up"}']) == sum(r["up_bytes"] for r in records)
    refused = sum(r["federation"].get("refused", 0) for r in records)
    assert float(numbers.get('fedadamw_events_total{event="refused"}', 0)) == refused
    with pytest.raises(InputError, match="metrics-port="), Monitor(port, "no.such.host"):
        pass
    with pytest.raises(InputError, match="1 to 65535"), Monitor(99999, "127.0.0.1"):
        pass


@pytest.mark.parametrize("host", ["", "fl.example.org:8443", "http://fl.example.org", "h\u00f6st", "a" * 70])
def test_a_host_that_no_certificate_is_for_is_refused(tmp_path, host):
    with pytest.raises(InputError, match="a server is called by a name"):
        certs.write(tmp_path / "certs", [host], 1)
    assert not (tmp_path / "certs").exists()


def test_certificates_are_for_long_names_and_addresses(tmp_path):
    from cryptography import x509

    name = "node." + "a" * 63 + ".example.org"
    certs.write(tmp_path / "certs", [name, "*.example.org", "10.0.0.5", "::1"], 1)
    made = x509.load_pem_x509_certificate((tmp_path / "certs/server.pem").read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [name, "*.example.org"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.5", "::1"]


def test_a_run_goes_on_from_its_folder(tmp_path):
    experiment = load("digits", [*COMMON, "training.rounds=3", "algorithm.name=scaffold", "training.lr=0.1"])
    grid = Here(3, tmp_path / "state")
    stopped = grid.pull_messages

    def stops(names):
        if (tmp_path / "run/metrics.jsonl").read_text().count("\n") == 1:
            raise ConnectionError("the SuperLink is gone")
        return stopped(names)

    grid.pull_messages = stops
    with pytest.raises(ConnectionError):
        run(experiment, grid, tmp_path / "run")
    with pytest.raises(InputError, match="holds a run already"):
        run(experiment, grid, tmp_path / "run")
    grid = Here(3, tmp_path / "state")
    run(experiment, grid, tmp_path / "run", resume=True)
    found, _ = checkpoint.read(tmp_path / "run/checkpoint/state.safetensors", "checkpoint")
    theirs = simulated(["training.rounds=3", "algorithm.name=scaffold", "training.lr=0.1"])
    list(theirs.rounds())
    for name, t in theirs.state.tensors().items():
        assert torch.equal(found[name], t), name
    assert "What came of the clients that were asked" in (tmp_path / "run/report.html").read_text()
