"""A real federation: a SuperLink with TLS and keys, SuperNodes, ServerApps and ClientApps, each in its own process."""

import contextlib
import json
import os
import signal
import sqlite3
import time

import pytest
import torch
from support.cases import CASES
from support.checkout import ROOT

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from support import flower_apps
from support.beds import assert_completed, records, server_apps, wait_until

from fedadamw import checkpoint
from fedadamw.flower.local.testbed import LocalFederation, kill
from fedadamw.prepare.simulation import prepare
from fedadamw.report.client_scores import read_lines
from fedadamw.settings.load import load

EVALUATE = ["partition.held_out=0.2", "training.client_evaluation=1"]
NODES = 3
SLOW = 2  # the node that lies and is slow, if the app makes it so
SHAPES = [  # algorithms whose messages or memories differ in kind; test_numbers.py has all of them, without processes
    "fedadamw-mean-v",
    "scaffold",
    "fedmuon-rank",
    "diloco",
]
COMMON = [
    f"partition.clients={NODES}",
    f"training={{rounds: 2, clients_per_round: {NODES}, steps: 3, batch_size: 20, lr: 0.001}}",
    "threads=1",
    "device=cpu",
]


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    """A SuperLink and three nodes."""
    with LocalFederation(tmp_path_factory.mktemp("bed"), NODES + 1) as bed:
        bed.start_superlink()
        for node in range(NODES):
            bed.register(node)
            odd = {"liar": 1, "slow-in-round": 1} if node == SLOW else {}
            bed.start_node(node, {"threads": 1, **odd})
        yield bed


def simulated(settings, clients=None):
    """Run the same experiment as a simulation, with these clients in every round if given."""
    simulation = prepare(load("digits", settings)).simulation()
    if clients is not None:
        simulation.clients.sample = lambda _: clients
    for _ in simulation.rounds():
        pass
    return simulation


def assert_same(found, simulation):
    for name, t in simulation.state.tensors().items():
        assert torch.equal(found[name], t), name


def settings_of(name):
    case = CASES[name]
    return [f"algorithm={json.dumps({'name': case.name, **case.settings})}", f"training.lr={case.lr}"]


@pytest.mark.slow
def test_algorithms_give_the_loops_numbers(bed, tmp_path):
    jobs = {name: settings_of(name) for name in SHAPES}
    common = [*COMMON, "training.clients_per_round=2"]
    app = flower_apps.write_many(tmp_path / "app", common, jobs)
    assert_completed(bed, bed.submit(app, {"out": str(tmp_path / "out")}), 1200)
    for name, settings in jobs.items():
        found, facts = checkpoint.read(tmp_path / "out" / name / "state.safetensors", "checkpoint")
        assert [record["answered"] for record in facts["records"]] == [2, 2]
        assert_same(found, simulated([*common, *settings]))


LIES = {  # a kind each; test_guard.py has all of them, without processes
    "nan": "not-finite",
    "missing": "missing-array",
    "weight": "samples",
    "garbage": "garbage",
}
SUMS_LIES = {"sums-more": "sums"}


@pytest.mark.slow
def test_an_invalid_upload_is_counted_and_changes_nothing(bed, tmp_path):
    one = [*COMMON, "training.rounds=1", "federation.retries=0"]
    jobs = {lie: [f"data.config=lie-{lie}"] for lie in (*LIES, "error")}
    jobs |= {lie: [f"data.config={lie}", *EVALUATE] for lie in SUMS_LIES}
    app = flower_apps.write_many(tmp_path / "app", one, jobs, client=flower_apps.LIARS)
    assert_completed(bed, bed.submit(app, {"out": str(tmp_path / "out")}), 900)
    honest = simulated(one, clients=[0, 1])
    for lie, reason in SUMS_LIES.items():
        found, facts = checkpoint.read(tmp_path / "out" / lie / "state.safetensors", "checkpoint")
        (record,) = facts["records"]
        expected = {
            "answered": 3,
            "evaluation answered": 2,
            "evaluation refused": 1,
            f"evaluation refused: {reason}": 1,
        }
        assert {name: record.get(name) for name in expected} == expected, lie
        assert "evaluation failed" not in record
        assert_same(found, simulated([*one, *EVALUATE]))
    for lie in jobs.keys() - SUMS_LIES.keys():
        found, facts = checkpoint.read(tmp_path / "out" / lie / "state.safetensors", "checkpoint")
        kind, reason = ("failed", "failed") if lie == "error" else ("refused", LIES[lie])
        assert facts["records"] == [{"asked": 3, "answered": 2, kind: 1, f"{kind}: {reason}": 1}], lie
        assert_same(found, honest)


@pytest.mark.slow
def test_only_registered_nodes_with_tls_can_connect(bed):
    stranger = bed.start_node(NODES, {})  # its key was never registered
    plain = bed.start_node(NODES + 1, tls=False)
    wait_until(lambda: stranger.poll() is not None, 90, "the end of the node whose key is not registered")
    wait_until(lambda: bed.log(f"node-{NODES + 1}").count("attempt failed") >= 2, 90, "attempts without TLS")
    assert stranger.returncode == 1
    assert "Exit Code: 305" in bed.log(f"node-{NODES}")
    assert online(bed) == NODES
    assert "SuperNode ID" not in bed.log(f"node-{NODES}") + bed.log(f"node-{NODES + 1}")
    for process in (stranger, plain):
        kill(process)


def online(bed):
    """Return how many of the registered nodes the SuperLink counts as online."""
    known = json.loads(bed.flwr("supernode", "list", "bed", "--format", "json"))["nodes"]
    assert len(known) == NODES
    return sum(node["status"] == "online" for node in known)


@contextlib.contextmanager
def lock_database(bed):
    """Lock the SuperLink's database, as a slow disk does."""
    with contextlib.closing(sqlite3.connect(bed.folder / "link.db", isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("ROLLBACK")


@pytest.mark.slow
def test_no_node_is_lost_while_the_database_is_locked(bed):
    names = ["link", *(f"node-{node}" for node in range(NODES))]
    before = {name: len(bed.log(name)) for name in names}
    with lock_database(bed):
        time.sleep(8)  # Flower's own SuperLink gives up after 5
    time.sleep(4)  # nodes look for messages every 3
    assert online(bed) == NODES
    assert [name for name in names if "rror" in bed.log(name)[before[name] :]] == []


@pytest.mark.slow
def test_a_superlink_and_a_node_that_cannot_continue_exit(tmp_path):
    with LocalFederation(tmp_path, 1) as bed:
        bed.start_superlink()
        bed.register(0)
        node = bed.start_node(0)
        wait_until(lambda: "Starting Flower SuperExec" in bed.log("node-0"), 60, "the node")
        with lock_database(bed):
            wait_until(lambda: node.poll() is not None, 90, "the node's end")
            wait_until(lambda: bed.superlink.poll() is not None, 90, "the SuperLink's end")
        assert node.returncode == 1
        assert "The SuperNode cannot continue" in bed.log("node-0")
        assert "The SuperExec, which starts runs, has ended" in bed.log("link")


@pytest.mark.slow
def test_the_example_app_learns(bed):
    run = bed.submit(ROOT / "examples" / "flower_app", {"rounds": 2})
    assert_completed(bed, run)
    lines = [line for line in bed.run_log(run).splitlines() if line.startswith("round ")]
    assert [line.split(",")[0] for line in lines] == ["round 1: 3 nodes", "round 2: 3 nodes"]
    assert float(lines[-1].split()[-1]) > 0.4


SCAFFOLD = ["algorithm.name=scaffold", "training.lr=0.1", "training.weighting=samples"]


SLOW_SCORES = ["training.upload=int8", "data.config=slow-scores"]


@pytest.mark.parametrize(
    ("killed", "settings"),
    [
        pytest.param("superlink", SCAFFOLD, id="superlink", marks=pytest.mark.slow),
        pytest.param("server-app", SLOW_SCORES, id="server-app", marks=pytest.mark.slow),
    ],
)
def test_resume_after_killing_the_server_gives_the_same_numbers(bed, tmp_path, killed, settings):
    """The ServerApp is killed while nodes evaluate the second round's model; the SuperLink while they train it."""
    three = [*COMMON, "training.rounds=3", *EVALUATE, *settings]
    client = flower_apps.LIARS if killed == "server-app" else None
    app, out = flower_apps.write_app(tmp_path / "app", three, client=client), tmp_path / "run"
    bed.submit(app, {"out": str(out)})
    wait_until(lambda: len(records(out)) == 1, 300, "the first round")
    if killed == "superlink":
        time.sleep(2)  # into the second
        kill(bed.superlink)
        bed.start_superlink()
    else:
        wait_until((bed.folder / "state" / "evaluating").exists, 120, "the second evaluation")
        (process,) = server_apps(bed)
        os.kill(process, signal.SIGKILL)
    assert len(records(out)) == 1
    assert_completed(bed, bed.submit(app, {"out": str(out), "resume": True}))
    assert (out / "report.html").exists()
    found, facts = checkpoint.read(out / "checkpoint" / "state.safetensors", "checkpoint")
    assert facts["round"] == 3
    theirs = simulated(three)
    assert_same(found, theirs)
    scores = read_lines(out / "client_scores.jsonl")
    assert [line["round"] for line in scores] == [1, 2, 3]
    assert scores[-1]["accuracy"] == pytest.approx(theirs.scores.columns["accuracy"], abs=1e-6)


@pytest.mark.slow
def test_a_killed_node_loses_its_round_and_a_lost_quorum_stops_the_run(bed, tmp_path):
    settings = [*COMMON, "training.rounds=4", "federation={deadline_s: 25, wait_s: 40, quorum: 2, retries: 0}"]
    app, out = flower_apps.write_app(tmp_path / "app", settings, client=flower_apps.LIARS), tmp_path / "run"
    run = bed.submit(app, {"out": str(out)})
    wait_until(lambda: len(records(out)) == 1, 300, "the first round")
    time.sleep(8)  # into the second, in which this node takes a minute
    kill(bed.nodes[SLOW])
    wait_until(lambda: len(records(out)) == 2, 120, "the second round")
    kill(bed.nodes[0])
    assert bed.wait_for_end(run, 240) == "finished:failed"
    first, second, *_ = records(out)
    assert first["federation"] == {"asked": 3, "answered": 3}
    assert second["federation"] == {"asked": 3, "answered": 2, "overdue": 1}  # no node was stale
    assert second["wall_s"] < 25 + 15
    log = bed.run_log(run)
    assert "QuorumError: round" in log
    assert "2 are needed (federation.quorum)" in log
    _, facts = checkpoint.read(out / "checkpoint" / "state.safetensors", "checkpoint")
    assert facts["round"] == len(records(out)) >= 2
