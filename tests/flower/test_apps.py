"""Apps, demonstrations, certificates, the monitor, and resuming a run."""

import json
import re
import socket
import urllib.request

import pytest
import torch

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from support.federated import COMMON, EVALUATE, LIES, simulated
from support.grids import LocalGrid

from fedadamw import checkpoint
from fedadamw.flower.local import certs, demo
from fedadamw.flower.server.monitor import Monitor
from fedadamw.flower.server_app import run
from fedadamw.prepare.paths import make_absolute
from fedadamw.report.client_scores import read_lines
from fedadamw.runner.client_losses import read_losses
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.validation import InputError

pytestmark = pytest.mark.usefixtures("restore_threads")


def test_a_demo_refuses_a_folder_that_another_process_uses(tmp_path):
    with RunFolder(tmp_path).lock(), pytest.raises(InputError, match="another process is running"):
        demo.run_demo(load("digits", COMMON), tmp_path, nodes=[{}] * 3, say=print)
    assert list(tmp_path.iterdir()) == []


def test_a_demo_gives_each_node_its_own_data(tmp_path):
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for file in files:
        file.write_text("text,label\n")
    assert demo.plan_nodes(None, [], None) == [{}] * 4
    assert demo.plan_nodes(2, [], None) == [{}] * 2
    assert demo.plan_nodes(None, files, 0.2) == [{"data": str(file), "held-out": 0.2} for file in files]
    for given, message in (
        ((3, files, None), "--nodes 3: there are 2 --data"),
        ((None, [], 0.2), "give --data"),
        ((None, files, 20.0), "--held-out 20.0: give a share of the data, between 0 and 1"),
        ((None, [tmp_path / "c.csv"], None), "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            demo.plan_nodes(*given)
    common, own = load("digits", COMMON), load("digits", [*COMMON, "partition.kind=nodes"])
    for experiment, nodes in ((common, [{"data": "a.csv"}] * 3), (own, [{}] * 3)):
        with pytest.raises(InputError, match="--data"):
            demo.run_demo(experiment, tmp_path / "run", nodes=nodes, say=print)


def test_the_monitor_serves_the_runs_metrics(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    experiment = load("digits", [*COMMON, *EVALUATE])
    lies = {2: LIES["nan"][0]}
    with Monitor(port, "127.0.0.1") as monitor:
        run(experiment, LocalGrid(3, tmp_path / "state", lies), tmp_path / "run", monitor=monitor)
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    numbers = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert float(numbers["fedadamw_round"]) == 2
    assert float(numbers["fedadamw_clients_online"]) == 3
    assert float(numbers['fedadamw_score{metric="accuracy"}']) == records[-1]["test_metrics"]["accuracy"]
    assert float(numbers['fedadamw_sent_bytes_total{direction="up"}']) == sum(r["up_bytes"] for r in records)
    for statistic in ("mean", "weighted", "std", "worst_decile"):
        of_nodes = float(numbers[f'fedadamw_clients_score{{statistic="{statistic}"}}'])
        assert of_nodes == records[-1][f"clients_{statistic}"]
    (evaluated,) = (line for line in read_lines(tmp_path / "run/client_scores.jsonl") if line["round"] == 2)
    for client, loss in zip(evaluated["clients"], evaluated["loss"], strict=True):
        assert float(numbers[f'fedadamw_client_score{{client="{client}",metric="loss"}}']) == pytest.approx(loss)
    refused = sum(r["federation"].get("refused", 0) for r in records)
    assert float(numbers.get('fedadamw_events_total{event="refused"}', 0)) == refused
    for line, record in zip(read_losses(tmp_path / "run/clients.jsonl"), records, strict=True):
        loss_of = dict(zip(line["clients"], line["losses"], strict=True))
        assert loss_of.pop(2, None) is None, "its answers are refused"
        assert sum(loss_of.values()) / len(loss_of) == pytest.approx(record["train_loss"], rel=1e-5)
    with pytest.raises(InputError, match="metrics-port="), Monitor(port, "no.such.host"):
        pass
    with pytest.raises(InputError, match="1 to 65535"), Monitor(99999, "127.0.0.1"):
        pass


@pytest.mark.parametrize("host", ["", "fl.example.org:8443", "http://fl.example.org", "h\u00f6st", "a" * 70])
def test_an_invalid_host_name_is_refused(tmp_path, host):
    with pytest.raises(InputError, match="a server's name looks like"):
        certs.write_certificates(tmp_path / "certs", [host], 1)
    assert not (tmp_path / "certs").exists()


def test_a_certificate_covers_long_names_wildcards_and_addresses(tmp_path):
    from cryptography import x509

    name = "node." + "a" * 63 + ".example.org"
    certs.write_certificates(tmp_path / "certs", [name, "*.example.org", "10.0.0.5", "::1"], 1)
    certificate = x509.load_pem_x509_certificate((tmp_path / "certs/server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [name, "*.example.org"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.5", "::1"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training.diagnostics=true"], "training.diagnostics needs simulated clients, not Flower's nodes"),
        (["training.clients_per_round=4"], "clients_per_round=4 is more than the 3 clients of the partition"),
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
def test_settings_that_cannot_run_are_refused_by_flower_new_and_by_the_server(settings, message, tmp_path, run_main):
    given = [part for setting in [*COMMON, *settings] for part in ("-s", setting)]
    done = run_main("flower", "new", str(tmp_path / "app"), "digits", *given)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    assert not (tmp_path / "app").exists()
    with pytest.raises(InputError, match=re.escape(message)):  # also by the server, whose settings may differ
        run(load("digits", [*COMMON, *settings]), LocalGrid(3, tmp_path / "state"), tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-s", "partition.kind=nodes"], "give each node's own data with --data"),
        (["--held-out", "0.2"], "give --data"),
        (["-s", "partition.clients=5"], "--nodes 4: the run waits for 5 clients"),
        (["-s", "federation.wait_for=1", "-s", "partition.clients=9", "--nodes", "1"], "waits for 2 clients"),
        (["-s", "trackers=[tensorbored]"], "did you mean 'tensorboard'"),
        (["-s", "training.diagnostics=true"], "needs simulated clients"),
    ],
)
def test_a_demo_that_cannot_run_starts_nothing(arguments, message, tmp_path, run_main):
    fewer = ["-s", "training.clients_per_round=4"] if "--nodes" in arguments else []
    done = run_main("flower", "demo", *arguments, *fewer, "--out", str(tmp_path / "demo"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
    assert not (tmp_path / "demo").exists()


def test_a_demo_resolves_paths_against_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").touch()
    given = ["data.source=../data", "data.test_source=data.csv", "model.name=owner/name", "model.tokenizer=./words"]
    found = make_absolute(load("digits", ["data.task=text", *given]))
    assert (found.data.source, found.data.test_source) == (str(tmp_path.parent / "data"), str(tmp_path / "data.csv"))
    assert (found.model.name, found.model.tokenizer) == ("owner/name", str(tmp_path / "words"))


def test_a_run_is_resumed_from_its_folder(tmp_path, capsys):
    experiment = load("digits", [*COMMON, "training.rounds=3", "algorithm.name=scaffold", "training.lr=0.1"])
    grid = LocalGrid(3, tmp_path / "state")
    honest = grid.pull_messages

    def fail_in_second_round(names):
        if (tmp_path / "run/metrics.jsonl").read_text().count("\n") == 1:
            raise ConnectionError("the SuperLink is gone")
        return honest(names)

    grid.pull_messages = fail_in_second_round
    with pytest.raises(ConnectionError):
        run(experiment, grid, tmp_path / "run")
    with pytest.raises(InputError, match="holds a run already"):
        run(experiment, grid, tmp_path / "run")
    grid = LocalGrid(3, tmp_path / "state")
    run(experiment, grid, tmp_path / "run", resume=True)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{tmp_path / 'run'}: report.html, curves.png, metrics.jsonl, events.jsonl, config.yaml, checkpoint/"
    found, _ = checkpoint.read(tmp_path / "run/checkpoint/state.safetensors", "checkpoint")
    theirs = simulated(["training.rounds=3", "algorithm.name=scaffold", "training.lr=0.1"])
    list(theirs.rounds())
    for name, t in theirs.state.tensors().items():
        assert torch.equal(found[name], t), name
    assert "Outcomes of the sampled clients" in (tmp_path / "run/report.html").read_text()
