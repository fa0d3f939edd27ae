"""Privacy of samples over a real federation: a SuperLink with TLS and keys, two nodes, each its own processes."""

import json

import pytest
from support import flower_apps

pytest.importorskip("flwr", reason="Flower needs Python 3.11")
pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")

from fedadamw.checkpoint import read
from fedadamw.flower.local.testbed import LocalFederation
from fedadamw.flower.node.ledger import read_spent
from fedadamw.privacy.accountant import Mechanism, compute_epsilon

pytestmark = pytest.mark.slow

SETTINGS = [
    "data.max_train=80",
    "data.max_test=20",
    "partition.clients=2",
    "training={rounds: 2, clients_per_round: 2, steps: 3, batch_size: 20, lr: 0.001}",
    "privacy={noise_multiplier: 1.5, clip: 0.5}",
    "federation={quorum: 1}",
    "threads=1",
    "device=cpu",
]
TRAINING = Mechanism(1.5, 20 / 40, 3)


def run(bed, app, out):
    """Run the app to its end; return its records and events."""
    number = bed.submit(app, {"out": str(out)})
    status = bed.wait_for_end(number, 900)  # seconds, on a busy machine
    assert status == "finished:completed", bed.run_log(number)[-3000:] + bed.log("node-0")[-2000:]
    lines = [(out / name).read_text().splitlines() for name in ("metrics.jsonl", "events.jsonl")]
    return [[json.loads(line) for line in text] for text in lines]


def test_nodes_charge_all_their_runs_and_decline_when_their_budget_is_spent(tmp_path):
    three = compute_epsilon([TRAINING._replace(times=9)], 1e-5)
    app = flower_apps.write_app(tmp_path / "app", SETTINGS)
    with LocalFederation(tmp_path / "bed", 2) as bed:
        bed.start_superlink()
        for node in range(2):
            bed.register(node)
            own = {"privacy-epsilon": three} if node else {"privacy-unit": "sample"}
            bed.start_node(node, {"threads": 1, "state-dir": str(tmp_path / f"state-{node}"), **own})
        records, _ = run(bed, app, tmp_path / "first")
        assert [record["federation"] for record in records] == [{"asked": 2, "answered": 2}] * 2
        assert [record["train_loss"] for record in records] == [None, None]
        records, events = run(bed, app, tmp_path / "second")
        outcomes = [{k: record["federation"].get(k, 0) for k in ("answered", "declined")} for record in records]
        assert outcomes == [{"answered": 2, "declined": 0}, {"answered": 1, "declined": 1}]
        assert "this node declines: its own privacy budget does not cover another training" in bed.log("node-1")
    (declined,) = [event for event in events if event["event"] == "declined"]
    assert declined["detail"] == "client 1: its own privacy budget does not cover another training"
    spent = [read_spent(tmp_path / f"state-{node}") for node in range(2)]
    assert [s.mechanisms for s in spent] == [[TRAINING._replace(times=12)], [TRAINING._replace(times=9)]]
    assert [len(s.runs) for s in spent] == [2, 2]
    models = [next((tmp_path / name / "checkpoint").glob("*.safetensors")) for name in ("first", "second")]
    first, second = (read(path, "checkpoint")[0]["server.x"] for path in models)
    assert (first != second).any()
