"""Buffered rounds over a Grid: nodes go on with their jobs while versions pass, and late answers count."""

import threading
import time

import pytest
import torch

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from support.buffered_twin import assert_same_server, replay
from support.federated import LIES, assert_same, federated, read_events, simulated

from fedadamw.engine.clients import QuorumError
from fedadamw.engine.simulate import Saved
from fedadamw.flower.server import messenger
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load
from fedadamw.validation import InputError

pytestmark = pytest.mark.usefixtures("restore_threads")

FOUR = ["partition.clients=4", "training.clients_per_round=4", "federation={retries: 0, quorum: 2}"]
BUFFERED = [*FOUR, "training.aggregation=buffered", "training.buffer=2"]


@pytest.fixture(autouse=True)
def _patient_pulls(monkeypatch):
    """What has been asked is answered at the next poll, however busy this machine is."""
    monkeypatch.setattr(messenger, "FIRST_WAIT_S", 60.0)


def hold(grid, *nodes):
    """Hold the replies of these nodes to train back until they are let go; their work is done at once."""
    grid.silent, grid.silent_to = set(nodes), {"train"}


def counted(tmp_path):
    return read_events(tmp_path, "counted")


def test_a_buffer_for_all_is_the_synchronous_run(tmp_path):
    settings = ["training.clients_per_round=3", "training.rounds=3"]
    ours, _ = federated(tmp_path, [*settings, "training.aggregation=buffered"])
    theirs = simulated(settings)
    for record, expected in zip(ours.rounds(), theirs.rounds(), strict=True):
        assert record.federation == {"asked": 3, "answered": 3}
        assert record.train_loss == expected.train_loss
        assert record.up_bytes == expected.up_bytes + 3 * 8, "and q of each"
    assert_same(ours, theirs)
    assert [(e["version"], e["repeat"], e["staleness"]) for e in counted(tmp_path)] == [
        (v, 0, 0) for v in (0, 1, 2) for _ in range(3)
    ]


def test_versions_advance_without_a_slow_node_and_its_answer_counts_with_its_staleness(tmp_path):
    settings = ["training.rounds=5"]
    ours, grid = federated(tmp_path, [*BUFFERED, *settings])
    ours.clients.sample(0)
    hold(grid, 103)
    records = [ours.step() for _ in range(3)]
    hold(grid)
    records += list(ours.rounds())
    jobs = counted(tmp_path)
    late = next(job for job in jobs if job["client"] == 3)
    assert (late["round"], late["version"], late["staleness"]) == (4, 0, 3)
    assert [sum(job["round"] == round_ for job in jobs) for round_ in range(1, 6)] == [2] * 5
    assert [record.clients for record in records] == [2] * 5
    assert_same_server(ours.state.server, replay(simulated([*FOUR, *settings], unequal_steps=True), jobs, 5))
    devices = [record.devices for record in records]
    assert (sum(d["counted"] for d in devices), max(d["staleness_max"] for d in devices)) == (10, 3)


def test_a_node_is_sent_the_change_only_from_the_version_that_it_holds(tmp_path):
    """Node 3 holds version 0 while others hold later ones."""
    ours, grid = federated(tmp_path, [*BUFFERED, "training.rounds=5"])
    ours.clients.sample(0)
    hold(grid, 103)
    ours.step(), ours.step()
    hold(grid)
    records = list(ours.rounds())
    forms = {}
    for message in grid.waiting.values():
        asked = message.content.config_records["fedadamw"]
        if asked["ask"] == "train":
            forms.setdefault(message.metadata.dst_node_id, []).append((asked["round"], asked["form"]))
    assert forms[103][:2] == [(0, "state"), (forms[103][1][0], "state")]
    assert any(form == "change" for node in (100, 101, 102) for _, form in forms[node])
    assert not any("stale" in record.federation for record in records)


def test_an_answer_that_is_too_stale_is_dropped_and_counted(tmp_path):
    ours, grid = federated(tmp_path, [*BUFFERED, "training.rounds=5", "training.max_staleness=1"])
    ours.clients.sample(0)
    hold(grid, 103)
    for _ in range(3):
        ours.step()
    hold(grid)
    record = ours.step()
    assert (record.federation["outdated"], record.devices["stale"]) == (1, 1)
    (event,) = read_events(tmp_path, "outdated")
    assert (event["client"], event["version"], event["staleness"]) == (3, 0, 3)
    assert max(job["staleness"] for job in counted(tmp_path)) <= 1


def answered_before(grid, node):
    """Let a node answer every request but its first with what it answered to the first."""
    answer, first = grid.workers[node].answer, []

    def again(facts, arrays):
        reply = answer(facts, arrays)
        if facts["ask"] == "train":
            first.append(reply)
            return first[0]
        return reply

    grid.workers[node].answer = again


JOB_LIES = {
    "version": (lambda _, numbers: numbers.update(version=numbers["version"] + 1), "other-job"),
    "repeat": (lambda _, numbers: numbers.update(repeat=5), "other-job"),
    "no-version": (lambda _, numbers: numbers.pop("version"), "other-job"),
    "fraction": (lambda _, numbers: numbers.update(version=0.5), "other-job"),
}


@pytest.mark.parametrize("name", [*JOB_LIES, "steps", "no-steps", "long", "more"])
def test_a_malicious_answer_is_refused_with_its_reason_and_changes_nothing(tmp_path, name):
    lie, reason = {**LIES, **JOB_LIES}[name]
    ours, _ = federated(tmp_path, [*BUFFERED, "training.rounds=1"], _0=lie)
    (record,) = ours.rounds()
    assert record.federation == {"asked": 4, "answered": 2, "refused": 1, f"refused: {reason}": 1}
    assert (record.clients, record.rejected, record.devices["rejected"]) == (2, 1, 1)
    theirs = simulated([*FOUR, "training.rounds=1"], clients=[1, 2])
    theirs.step()
    assert torch.equal(ours.state.server.x, theirs.state.server.x)


def test_an_answer_that_was_given_before_is_refused(tmp_path):
    ours, grid = federated(tmp_path, [*BUFFERED, "training.rounds=4"])
    ours.clients.sample(0)
    answered_before(grid, 102)
    list(ours.rounds())
    assert {(event["client"], event["reason"]) for event in read_events(tmp_path, "refused")} == {(2, "other-job")}
    assert [job["version"] for job in counted(tmp_path) if job["client"] == 2] == [0]


def test_a_resumed_run_asks_anew_whoever_was_at_work(tmp_path):
    settings = [*BUFFERED, "training.rounds=6"]
    ours, grid = federated(tmp_path, settings)
    ours.clients.sample(0)
    hold(grid, 103)
    ours.step(), ours.step()
    saved = {name: t.clone() for name, t in ours.tensors().items()}
    ours.step()  # the server will forget this version
    hold(grid)
    again, _ = federated(tmp_path / "again", settings, grid)
    again.restore(Saved(2, saved))
    lost = read_events(tmp_path / "again", "asked-anew")
    assert (3, 0) in [(event["client"], event["version"]) for event in lost]
    list(again.rounds())
    kept = [job for job in counted(tmp_path) if job["round"] <= 2]
    asked = read_events(tmp_path / "again", "asked")
    assert 3 in [event["client"] for event in asked if event["version"] == 2]
    assert min(event["job"] for event in asked) == 1 + max(job["job"] for job in [*kept, *lost])
    jobs = [*kept, *counted(tmp_path / "again")]
    twin = simulated([*FOUR, "training.rounds=6"], unequal_steps=True)
    assert_same_server(again.state.server, replay(twin, jobs, 6))


def test_a_run_to_which_no_answer_comes_stops_after_wait_s(tmp_path):
    settings = ["federation={retries: 0, quorum: 2, deadline_s: 1, wait_s: 1}"]
    ours, grid = federated(tmp_path, [*BUFFERED, *settings])
    ours.clients.sample(0)
    hold(grid, 100, 101, 102, 103)
    start = time.monotonic()
    with pytest.raises(QuorumError, match="0 of 2 uploads came"):
        ours.step()
    assert time.monotonic() - start < 20
    assert len(read_events(tmp_path, "overdue")) == 4


def test_the_place_of_an_overdue_job_is_given_to_another_and_its_answer_counts_when_it_comes(tmp_path):
    settings = ["training.concurrency=2", "federation={retries: 0, quorum: 2, deadline_s: 1, wait_s: 60}"]
    ours, grid = federated(tmp_path, [*BUFFERED, *settings, "training.rounds=3"])
    ours.clients.sample(0)
    slow = {100 + client for client in (0, 1)}
    ours.clients.registry.joined = dict(sorted(ours.clients.registry.joined.items()))
    hold(grid, *slow, 102, 103)
    threading.Timer(2.5, lambda: hold(grid, *slow)).start()
    first = ours.step()
    assert first.federation["overdue"] >= 1
    hold(grid)
    list(ours.rounds())
    assert {job["client"] for job in counted(tmp_path)} >= {2, 3}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["algorithm=scaffold", "training.staleness=none"], "scaffold keeps a memory on each node"),
        (["algorithm={name: diloco, moments: keep}"], "diloco keeps a memory on each node"),
        (["training.upload=int8"], "training.upload=int8 keeps what it loses"),
        (
            ["personal.parameters=['*bias']", "training.client_evaluation=1", "partition.held_out=0.2"],
            "memory on each node",
        ),
        (["training.mean=median"], "training.mean='median' needs all at once"),
        (["devices={}"], "Flower's nodes are real devices"),
    ],
)
def test_what_cannot_be_buffered_over_flower_is_refused_by_name(settings, said):
    experiment = load(
        "digits",
        [
            "partition.clients=4",
            "training={rounds: 2, clients_per_round: 2, steps: 1}",
            "training.aggregation=buffered",
            *settings,
        ],
    )
    with pytest.raises(InputError, match=said):
        prepare(experiment, remote=True)
