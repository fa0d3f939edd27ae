"""Rounds over a Grid: which clients are waited for, asked again and left out, and what they remember."""

import json
import shutil
import threading
import time

import pytest

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from support.federated import LIES, assert_same, federated, simulated

from fedadamw.checkpoint import CheckpointError
from fedadamw.engine.clients import QuorumError
from fedadamw.engine.simulate import Saved
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.federation import FederationSettings
from fedadamw.settings.load import load
from fedadamw.validation import InputError

pytestmark = pytest.mark.usefixtures("restore_threads")


def test_a_node_that_stalls_during_a_pull_does_not_delay_the_others(tmp_path):
    ours, grid = federated(tmp_path, ["training.clients_per_round=3", "federation={deadline_s: 3, retries: 0}"])
    ours.clients.sample(0)
    honest, stopped = grid.pull_messages, threading.Event()

    def pulled(names):
        if grid.waiting[next(iter(names))].metadata.dst_node_id == 100:
            stopped.wait(60)
        return honest(names)

    grid.pull_messages = pulled
    start = time.monotonic()
    assert ours.step().federation == {"asked": 3, "answered": 2, "overdue": 1}
    assert time.monotonic() - start < 20
    stopped.set()


def test_a_client_forgets_a_round_whose_upload_did_not_count(tmp_path):
    settings = ["training.rounds=3", "training.clients_per_round=3", "algorithm.name=scaffold", "training.lr=0.1"]
    lies = iter([True, False, False])
    lie = LIES["nan"][0]
    ours, _ = federated(tmp_path, [*settings, "federation.retries=0"], _2=lambda *a: lie(*a) if next(lies) else None)
    assert [record.clients for record in ours.rounds()] == [2, 3, 3]
    theirs = simulated(settings)
    theirs.clients.sample = lambda round_: [0, 1] if round_ == 0 else [0, 1, 2]
    list(theirs.rounds())
    assert_same(ours, theirs)


def test_a_lost_memory_is_reported(tmp_path):
    settings = ["training.clients_per_round=3", "algorithm.name=scaffold", "training.lr=0.1", "federation.retries=0"]
    ours, grid = federated(tmp_path, settings)
    ours.step()
    shutil.rmtree(next((tmp_path / "state").glob("*/client-1")))
    grid.workers[101] = type(grid.workers[101])()
    assert ours.step().federation == {"asked": 3, "answered": 2, "failed": 1, "failed: failed": 1}
    assert "the memories of round 1 are lost" in (tmp_path / "run/events.jsonl").read_text()


def test_the_checkpoint_records_norms_and_counted_uploads(tmp_path):
    settings = ["training.clients_per_round=3", "training.rounds=3"]
    ours, _ = federated(tmp_path, settings)
    ours.step()
    again, _ = federated(tmp_path / "again", settings)
    again.restore(Saved(1, ours.tensors()))
    assert again.clients.ledger.page == ours.clients.ledger.page
    assert sorted(again.clients.ledger.page.counted.items()) == [(0, 1), (1, 1), (2, 1)]
    simulation = simulated(settings)
    simulation.step()
    with pytest.raises(CheckpointError, match="of a simulation"):
        again.restore(Saved(1, simulation.tensors()))


def test_a_client_that_fails_is_asked_again(tmp_path):
    settings = ["training.clients_per_round=3"]
    ours, grid = federated(tmp_path, settings)
    tried = []
    work = grid.workers[100].answer

    def once(facts, arrays):
        if facts["ask"] == "train" and not tried:
            tried.append(1)
            return {"error": "OSError: the disk is gone"}, {}
        return work(facts, arrays)

    grid.workers[100].answer = once
    records = list(ours.rounds())
    failed = [r.federation for r in records if "failed" in r.federation]
    assert failed == [{"asked": 4, "answered": 3, "failed": 1, "failed: failed": 1}]
    theirs = simulated(settings)
    list(theirs.rounds())
    assert_same(ours, theirs)


def test_a_silent_client_is_awaited_until_the_deadline_then_counted_as_late(tmp_path):
    settings = ["training.clients_per_round=3", "federation={deadline_s: 2, retries: 0}"]
    ours, grid = federated(tmp_path, settings)
    ours.clients.sample(0)  # so that all have joined
    grid.silent = {101}
    start = time.monotonic()
    first = ours.step()
    assert 2 <= time.monotonic() - start < 30
    assert first.federation == {"asked": 3, "answered": 2, "overdue": 1}
    grid.silent = set()
    assert ours.step().federation == {"asked": 3, "answered": 3, "late": 1}


def test_over_selection_uses_the_first_uploads(tmp_path):
    settings = ["federation={over_selection: 0.5, deadline_s: 60}"]
    ours, grid = federated(tmp_path, settings)
    ours.clients.sample(0)
    grid.silent = {101}
    start = time.monotonic()
    assert ours.step().federation == {"asked": 3, "answered": 2, "overdue": 1}
    assert time.monotonic() - start < 30


def test_an_upload_more_than_wanted_counts_as_surplus(tmp_path):
    ours, _ = federated(tmp_path, ["federation={over_selection: 0.5}"])
    assert ours.step().federation == {"asked": 3, "answered": 2, "surplus": 1}
    assert not list((tmp_path / "run/spool").iterdir())


def test_a_run_without_quorum_stops_after_wait_s_and_keeps_its_state(tmp_path):
    settings = ["training.clients_per_round=3", "federation={quorum: 3, wait_s: 1, deadline_s: 1}"]
    ours, grid = federated(tmp_path, settings)
    ours.step()
    before = ours.state
    del grid.configs[102]
    with pytest.raises(QuorumError, match="round 2: 2 of 3 clients are online, 3 are needed"):
        ours.step()
    assert ours.state is before
    events = (tmp_path / "run/events.jsonl").read_text()
    assert '"left"' in events
    assert '"waiting"' in events


def test_a_client_that_comes_back_as_another_node_continues_from_its_memory(tmp_path):
    settings = ["training.rounds=3", "algorithm.name=scaffold", "training.lr=0.1", "training.clients_per_round=3"]
    ours, grid = federated(tmp_path, [*settings, "federation.quorum=3"])
    ours.step()
    grid.configs[200], grid.workers[200] = grid.configs.pop(101), type(grid.workers.pop(101))()
    list(ours.rounds())
    theirs = simulated(settings)
    list(theirs.rounds())
    assert_same(ours, theirs)


@pytest.mark.parametrize("more", [["algorithm.name=scaffold", "training.lr=0.1"], ["training.upload=int8"]])
def test_a_repeated_round_starts_from_the_memories_before_it(tmp_path, more):
    settings = ["training.rounds=3", "training.clients_per_round=3", *more]
    ours, _ = federated(tmp_path, settings)
    ours.step()
    saved = {name: t.clone() for name, t in ours.tensors().items()}
    ours.step()  # the server will forget this round
    ours.restore(Saved(1, saved))
    list(ours.rounds())
    theirs = simulated(settings)
    list(theirs.rounds())
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"partition-id": 7}, "failed"),
        ({"partition-id": "two"}, "failed"),
        ({}, "failed"),
        ({"partition-id": 0}, "taken"),
    ],
)
def test_a_node_with_an_invalid_number_is_left_out(tmp_path, config, reason):
    ours, grid = federated(tmp_path, ["federation={quorum: 2, wait_for: 2, wait_s: 60}"])
    grid.configs[102] = {**config, "state-dir": str(tmp_path / "state")}
    ours.step()
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    (event,) = (event for event in events if event["event"] == "stranger")
    assert event["reason"] == reason


def test_a_simulation_refuses_nodes_with_their_own_data():
    with pytest.raises(InputError, match="cannot be simulated"):
        prepare(load("digits", ["partition.kind=nodes"]))


def test_quorum_and_over_selection_round_up():
    assert FederationSettings().quorum_of(5) == 3
    assert FederationSettings(quorum=9).quorum_of(5) == 5
    assert FederationSettings(over_selection=0.3).clients_to_ask(10) == 13
