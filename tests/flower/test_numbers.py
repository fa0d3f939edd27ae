"""Over a Grid come the simulation's numbers: every algorithm, codec and adapter, own data, a run of its own."""

import json
import re
import socket
import time
import urllib.request
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny_models
from support.cases import CASES, EVERYWHERE, rows

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from support.federated import COMMON, LIES, assert_same, federated, simulated
from support.grids import Here

from fedadamw import checkpoint
from fedadamw.engine.ledger import read_page
from fedadamw.flower.local import certs, demo
from fedadamw.flower.node import node
from fedadamw.flower.node.worker import Worker
from fedadamw.flower.server.monitor import Monitor
from fedadamw.flower.server.rounds import QuorumError
from fedadamw.flower.server_app import run
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.settings.paths import make_absolute
from fedadamw.trained.export import export
from fedadamw.trained.load import _nodes, of_run
from fedadamw.validation import InputError

pytestmark = pytest.mark.usefixtures("restore_threads")


@pytest.mark.parametrize("name", rows(EVERYWHERE))
@pytest.mark.usefixtures("all_algorithms")
def test_every_algorithm_comes_to_the_loops_numbers(tmp_path, name):
    case = EVERYWHERE[name]
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


@pytest.mark.parametrize("name", rows(["fedadamw-mean-v", "fedadamw-vm", "fedcm", "fedlada", "fedmuon-rank", "fedavg"]))
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
        "name: ./roberta" in ours.remote.registry.messenger.facts["settings"]
    )  # no node takes a folder of the server for a hub id
    losses = [record.test_loss for record in ours.rounds()]
    assert losses[-1] < losses[0]
    assert [known.samples for _, known in sorted(ours.remote.registry.known.items())] == [len(part) for part in parts]


def test_a_node_without_its_data_says_so(tmp_path):
    ours, grid = federated(tmp_path, ["partition.kind=nodes", "federation={quorum: 1, wait_s: 1}"])
    grid.configs[100]["data"] = str(tmp_path / "nothing")
    with pytest.raises(QuorumError):
        ours.step()
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    found = {event["node"]: event["detail"] for event in events if event["event"] == "stranger"}
    assert "no such" in found["100"].lower()
    assert "give --node-config" in found["101"]


@pytest.mark.parametrize("given", ["mps", "xpu:0", "cuda:x", "cuda:99", 1, True])
def test_a_node_trains_on_the_device_that_it_is_told(tmp_path, given):
    settings, config = load("digits", COMMON).to_yaml(), {"partition-id": 0, "state-dir": str(tmp_path)}
    assert node.read_device(config) == "auto"
    assert node.read_device({**config, "device": "cuda:1"}) == "cuda:1"
    with pytest.raises(InputError, match="no device to train on; use one of auto, cpu, cuda|sees no such GPU here"):
        node.load_node(settings, "{}", {**config, "device": given}, "run")


def test_a_node_whose_memory_is_full_lets_go_of_all_it_held(monkeypatch):
    class Full:
        def train(self, arrays, facts):
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    made, worker, given_back = [Full()], Worker(), []
    full = weakref.ref(made[0])
    monkeypatch.setattr(worker, "_loaded", lambda _: made.pop())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(full() is None))
    worker._nodes["of another run"] = None
    about = dict.fromkeys(("settings", "about", "config", "federation"), "")
    numbers, _ = worker.answer({"ask": "train", "came": time.time(), "seconds": 60, **about}, {})
    assert "CUBLAS_STATUS_ALLOC_FAILED" in numbers["error"]
    assert given_back == [True]
    assert not worker._nodes


def images(folder, **counts):
    """A folder of so many images of each class."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return str(folder)


def with_images(tmp_path, *more):
    """Settings, and a grid of three nodes with images of their own."""
    source = images(tmp_path / "server", cat=6, dog=6, owl=6)
    grid = Here(3, tmp_path / "state")
    for i, classes in enumerate(({"cat": 6}, {"owl": 6}, {"owl": 6, "dog": 6})):
        grid.configs[100 + i]["data"] = images(tmp_path / f"node-{i}", **classes)
    own = ["partition.kind=nodes", "training.clients_per_round=3"]
    return [f"data={{source: {source}, validation: 0.5}}", *own, *more], grid


def test_a_node_may_have_images_of_one_class_alone(tmp_path):
    settings, grid = with_images(tmp_path)
    ours, _ = federated(tmp_path, settings, grid)
    assert ours.step().federation == {"asked": 3, "answered": 3}
    assert [ours.remote.registry.known[i].samples for i in range(3)] == [6, 6, 12]


@pytest.mark.parametrize(("counts", "samples"), [("true", "24, as the nodes tell"), ("false", "not told")])
def test_a_card_tells_of_nodes_what_they_tell_and_not_what_the_server_has(tmp_path, counts, samples):
    federation = f"federation={{quorum: 3, wait_for: 3, wait_s: 5, sample_counts: {counts}}}"
    settings, grid = with_images(tmp_path, "partition.clients=5", "training.rounds=1", federation)
    run(load("digits", [*COMMON, *settings]), grid, tmp_path / "run")
    export(of_run(tmp_path / "run"), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "# image, trained by fedadamw over 3 clients" in card
    assert f"| training data, on the nodes | {samples} | not known to the server |" in card
    assert "| the server's own, not trained on | 9 | " in card
    assert "| partition | each of 3 nodes its own data |" in card
    assert "| clients | 5, 3 a round; answers of 3 counted, split nodes |" in card
    nodes = json.loads((tmp_path / "out/fedadamw.json").read_text())["nodes"]
    assert nodes == {"counted": 3, "samples": 24 if counts == "true" else None}
    assert str(tmp_path) not in card
    report = (tmp_path / "run/report.html").read_text()
    assert "data.server&#x27;s own, not trained on.samples<td>9" in report
    assert "data.train" not in report


def test_two_demonstrations_never_share_a_folder(tmp_path):
    with RunFolder(tmp_path).locked(), pytest.raises(InputError, match="another process is running"):
        demo.run_demo(load("digits", COMMON), tmp_path, nodes=3, say=print)
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_an_earlier_version_says_nothing_of_samples():
    text = json.dumps([[[0, 1], [2, 4]], [[{"delta": 1.5}]]])
    page = read_page(torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8))
    assert page == ({0: 1, 2: 4}, [[{"delta": 1.5}]], {})
    assert _nodes(page) == {"counted": 2, "samples": None}


@pytest.mark.filterwarnings("ignore:BatchNorm takes no batch of one")
def test_a_node_with_one_sample_says_what_batch_norm_needs_and_lives_on(tmp_path):
    """8 x 8 pixels leave ResNet's last BatchNorm one place: it averages over the batch alone."""
    source = images(tmp_path / "server", cat=6, owl=6)
    settings = [
        f"data={{source: {source}, validation: 0.5}}",
        "model={name: resnet-nano, norm: batch}",
        "partition.kind=nodes",
        "training={rounds: 1, clients_per_round: 3, epochs: 1, batch_size: 4, lr: 0.001}",
        "federation={quorum: 2, retries: 0}",
    ]
    grid = Here(3, tmp_path / "state")
    for i, count in enumerate((1, 5, 4)):
        grid.configs[100 + i]["data"] = images(tmp_path / f"node-{i}", owl=count)
    ours, _ = federated(tmp_path, settings, grid)
    assert ours.step().federation == {"asked": 3, "answered": 2, "failed": 1, "failed: failed": 1}
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    (detail,) = [event["detail"] for event in events if event["event"] == "failed"]
    assert "client 0 has a single sample, and this model's BatchNorm" in detail


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
        certs.write_certificates(tmp_path / "certs", [host], 1)
    assert not (tmp_path / "certs").exists()


def test_certificates_are_for_long_names_and_addresses(tmp_path):
    from cryptography import x509

    name = "node." + "a" * 63 + ".example.org"
    certs.write_certificates(tmp_path / "certs", [name, "*.example.org", "10.0.0.5", "::1"], 1)
    made = x509.load_pem_x509_certificate((tmp_path / "certs/server.pem").read_bytes())
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [name, "*.example.org"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.5", "::1"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training.diagnostics=true"], "training.diagnostics looks at clients while they train: not elsewhere"),
        (["training.clients_per_round=4"], "clients_per_round=4 is more than the 3 clients there are"),
        (["training.mean=krum"], "needs 5 clients a round, not 2 (training.clients_per_round)"),
        (
            ["training.mean=trimmed-mean", "training.clients_per_round=3"],
            "3 clients a round, not 2 (federation.quorum)",
        ),
        (["federation.sample_counts=false", "training.weighting=samples"], "needs training.weighting=uniform"),
        (["lora={aggregate: exact}", "algorithm.name=fedadam"], "this algorithm's server does not"),
        (["model.name=vit-macro"], "(did you mean 'vit-micro'?)"),
        (["model.name=resnet18", "model.depth=2"], "model.depth is a setting of vit-nano"),
        (["data.task=text", "model.name=owner/name"], "data.task='text' needs data.source"),
        (["data.resident=false", "data.max_train=9"], "data.resident=false takes all samples"),
        (["trackers=[tensorbored]"], "did you mean 'tensorboard'"),
    ],
)
def test_an_app_that_can_only_fail_is_refused_where_it_is_made(settings, message, tmp_path, run_main):
    given = [part for setting in [*COMMON, *settings] for part in ("-s", setting)]
    done = run_main("flower", "new", str(tmp_path / "app"), "digits", *given)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    assert not (tmp_path / "app").exists()
    with pytest.raises(InputError, match=re.escape(message)):  # and again by the server, whose settings may be others
        run(load("digits", [*COMMON, *settings]), Here(3, tmp_path / "state"), tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-s", "partition.kind=nodes"], "the demonstration's nodes have no data of their own"),
        (["-s", "partition.clients=5"], "--nodes 4: the run waits for 5 clients"),
        (["-s", "federation.wait_for=1", "-s", "partition.clients=9", "--nodes", "1"], "waits for 2 clients"),
        (["-s", "trackers=[tensorbored]"], "did you mean 'tensorboard'"),
        (["-s", "training.diagnostics=true"], "not elsewhere"),
    ],
)
def test_a_demonstration_that_can_only_fail_starts_nothing(arguments, message, tmp_path, run_main):
    fewer = ["-s", "training.clients_per_round=4"] if "--nodes" in arguments else []
    done = run_main("flower", "demo", *arguments, *fewer, "--out", str(tmp_path / "demo"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    assert not (tmp_path / "demo").exists()


def test_a_demonstration_takes_paths_from_where_it_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").touch()
    given = ["data.source=../data", "data.test_source=data.csv", "model.name=owner/name", "model.tokenizer=./words"]
    found = make_absolute(load("digits", ["data.task=text", *given]))
    assert (found.data.source, found.data.test_source) == (str(tmp_path.parent / "data"), str(tmp_path / "data.csv"))
    assert (found.model.name, found.model.tokenizer) == ("owner/name", str(tmp_path / "words"))


def test_a_run_goes_on_from_its_folder(tmp_path, capsys):
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
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{tmp_path / 'run'}: report.html, curves.png, metrics.jsonl, events.jsonl, config.yaml, checkpoint/"
    found, _ = checkpoint.read(tmp_path / "run/checkpoint/state.safetensors", "checkpoint")
    theirs = simulated(["training.rounds=3", "algorithm.name=scaffold", "training.lr=0.1"])
    list(theirs.rounds())
    for name, t in theirs.state.tensors().items():
        assert torch.equal(found[name], t), name
    assert "What came of the clients that were asked" in (tmp_path / "run/report.html").read_text()
