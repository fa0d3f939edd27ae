"""Nodes keep their personal parameters: the simulator's numbers, and none of them on the wire."""

import json
import signal
import time

import pytest
import torch
from support.cases import EVERYWHERE

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from support import flower_apps
from support.federated import EVALUATE, assert_same, assert_same_scores, federated, simulated
from support.grids import LocalGrid

from fedadamw import checkpoint
from fedadamw.engine.store import OnDisk
from fedadamw.flower.local.testbed import LocalFederation
from fedadamw.flower.protocol import ARRAYS
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load

pytestmark = [
    pytest.mark.usefixtures("restore_threads"),
    pytest.mark.filterwarnings("ignore:personal.parameters. no global model is tested"),
]
OTHERS = ("fedadamw-mean-v", "fedadamw-outer", "fedmuon-rank", "diloco")
HEAD = "personal.parameters=[classifier.*]"


class Recorder(LocalGrid):
    """Keeps every array that nodes and the server send."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.sent: list[dict] = []

    def push_messages(self, messages):
        messages = list(messages)
        self.sent += [dict(m.content.array_records[ARRAYS]) for m in messages if ARRAYS in m.content.array_records]
        return super().push_messages(messages)

    def pull_messages(self, message_ids):
        messages = list(super().pull_messages(message_ids))
        self.sent += [dict(m.content.array_records.get(ARRAYS, {})) for m in messages if m.has_content()]
        return messages


@pytest.mark.parametrize("name", ["scaffold", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_nodes_give_the_loops_numbers_and_keep_their_own(tmp_path, name):
    case = EVERYWHERE[name]
    settings = [f"algorithm={json.dumps({'name': case.name, **case.settings})}", f"training.lr={case.lr}", HEAD]
    settings += [f"training.{key}={json.dumps(value)}" for key, value in case.training.items()]
    settings += ["training.rounds=3", "training.clients_per_round=3", *EVALUATE]
    grid = Recorder(3, tmp_path / "state")
    ours, _ = federated(tmp_path, settings, grid)
    theirs = simulated(settings)
    for record, expected in zip(ours.rounds(), theirs.rounds(), strict=True):
        if record.round == 1:  # a node that starts anew, and finds its memory
            grid.workers[101] = type(grid.workers[101])()
        assert record.train_loss == expected.train_loss
        assert record.up_bytes == expected.up_bytes + 3 * 3 * 8, "three sums of each client"
        assert_same_scores(ours.scores, theirs.scores)
    assert_same(ours, theirs)
    widths = {array.shape[-1] for arrays in grid.sent for array in arrays.values() if array.shape}
    shared, whole = len(ours.workspace.shared), len(ours.workspace.y)
    assert shared in widths
    assert max(widths) < whole, "no array has the numbers of the head"
    for client in range(3):
        kept = memory_on_disk(tmp_path / "state", client, ours)
        expected = theirs.clients.store.get(client, 3)
        assert torch.equal(kept.own_server_x, expected.own_server_x)
        assert not torch.equal(kept.own_server_x, ours.algorithm.initial)
        numbers = kept.own_server_x.numpy().tobytes()
        assert not any(numbers in array.data for arrays in grid.sent for array in arrays.values())


def memory_on_disk(home, client, simulation):
    """What a node has written."""
    (folder,) = home.glob(f"*/client-{client}")
    algorithm = simulation.algorithm
    down = algorithm.broadcast(algorithm.server_init(simulation.workspace.shared))
    return OnDisk(folder, 1, algorithm.client_init(down)).get(0, 3)


@pytest.mark.slow
def test_a_real_node_finds_its_parameters_after_a_restart_and_sends_none(tmp_path):
    settings = [
        HEAD,
        "partition={clients: 3, held_out: 0.2}",
        "training={rounds: 3, clients_per_round: 3, steps: 3, batch_size: 20, lr: 0.001, client_evaluation: 1}",
        "federation={quorum: 3, deadline_s: 20}",
        "threads=1",
        "device=cpu",
    ]
    out = tmp_path / "run"
    with LocalFederation(tmp_path / "bed", 3) as bed:
        bed.start_superlink()
        for node in range(3):
            bed.register(node)
            bed.start_node(node, {"threads": 1})
        run = bed.submit(flower_apps.write_app(tmp_path / "app", settings), {"out": str(out)})
        wait_for(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text(), 300)
        bed.nodes[0].send_signal(signal.SIGTERM)  # a node that was killed is taken for online for a minute
        bed.nodes[0].wait(60)
        bed.start_node(0, {"threads": 1})
        assert bed.wait_for_end(run, 400) == "finished:completed", bed.run_log(run)[-3000:]
        state = bed.folder / "state"
    theirs = prepare(load("digits", settings)).simulation()
    losses = [record.clients_metrics["loss"] for record in theirs.rounds()]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["clients_metrics"]["loss"] for line in lines] == pytest.approx(losses, abs=1e-6)
    found, _ = checkpoint.read(out / "checkpoint" / "state.safetensors", "checkpoint")
    for name, t in theirs.state.tensors().items():
        assert torch.equal(found[name], t), name
    stored = [path.read_bytes() for path in [*out.rglob("*"), *(tmp_path / "bed").glob("link.db*")] if path.is_file()]
    for client in range(3):
        kept = memory_on_disk(state, client, theirs)
        assert torch.equal(kept.own_server_x, theirs.clients.store.get(client, 3).own_server_x)
        assert not any(kept.own_server_x.numpy().tobytes()[:256] in content for content in stored), "on the server"


def wait_for(condition, seconds):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)
