"""Replies that are slow, late, hanging, too large or from another client neither delay a round nor change the model."""

import json
import shutil
import threading
import time

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

import httpx
from flwr.app import Array
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import add_header_to_object_body, get_object_body
from support.federated import assert_same, changed, federated, simulated

from fedadamw.checkpoint import CheckpointError
from fedadamw.engine.clients import QuorumError
from fedadamw.engine.parts import Whole
from fedadamw.engine.record import DivergedError
from fedadamw.flower.server import clients, messenger, pull
from fedadamw.flower.wire import RefusedError

pytestmark = pytest.mark.usefixtures("restore_threads")
SCAFFOLD = ["algorithm.name=scaffold", "training.lr=0.1", "training.clients_per_round=3", "federation.retries=0"]


def delay_replies(grid, delay):
    """Call `delay(name, node)` before each reply is pulled."""
    honest = grid.pull_messages

    def pull(names):
        (name,) = names
        delay(name, grid.waiting[name].metadata.dst_node_id)
        return honest(names)

    grid.pull_messages = pull


def events(tmp_path, kind):
    lines = (tmp_path / "run/events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_slow_late_replies_do_not_delay_the_next_round(tmp_path):
    federation = "federation={over_selection: 1.0, deadline_s: 20, retries: 0}"
    ours, grid = federated(tmp_path, ["partition.clients=8", "training.clients_per_round=4", federation])
    ours.clients.sample(0)
    grid.silent = {104, 105, 106, 107}
    assert ours.step().federation == {"asked": 8, "answered": 4, "overdue": 4}
    grid.silent = set()
    late = set(ours.clients.collector.late.overdue)
    delay_replies(grid, lambda name, _: time.sleep(2 if name in late else 0))
    start = time.monotonic()
    assert ours.step().federation["answered"] == 4
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("asked", ["train", "hello"])
def test_nodes_with_hanging_replies_delay_the_others_only_briefly(tmp_path, monkeypatch, asked):
    monkeypatch.setattr(messenger, "SLOW_PULL_S", 1.0)
    federation = "federation={quorum: 5, deadline_s: 30, wait_s: 8, retries: 0, wait_for: 6}"
    ours, grid = federated(tmp_path, ["partition.clients=10", "training.clients_per_round=6", federation])
    over, hung = threading.Event(), {100, 101, 102, 103, 104}
    if asked == "train":
        ours.clients.sample(0)
        hung = {100, 101, 102, 103}
    delay_replies(grid, lambda _, node: over.wait(60) if node in hung else None)
    ours.clients.sample = lambda _: list(range(4, 10)) if asked == "train" else list(range(5, 10))
    ours.clients._wait_for_clients(0, 5)
    ours.clients.collector.registry.poll_online()
    found = ours.step().federation if asked == "train" else ours.clients.registry.poll_online()
    over.set()
    assert found == ({"asked": 6, "answered": 6} if asked == "train" else [5, 6, 7, 8, 9])


def test_a_node_with_hanging_replies_uses_two_threads_and_is_not_asked_again(tmp_path):
    settings = ["training.rounds=4", "training.clients_per_round=3", "federation={deadline_s: 1.5, retries: 0}"]
    ours, grid = federated(tmp_path, settings)
    ours.clients.sample(0)
    over = threading.Event()
    delay_replies(grid, lambda _, node: over.wait(60) if node == 102 else None)
    came = [record.federation for record in ours.rounds()]
    assert sum(isinstance(thread, pull.Pull) for thread in threading.enumerate()) <= messenger.MAX_PULLS_PER_NODE
    over.set()
    assert came[-1] == {"asked": 2, "answered": 2, "unreachable": 1}


def test_a_reply_after_the_deadline_counts_if_the_round_has_no_quorum_yet(tmp_path):
    federation = "federation={deadline_s: 2, wait_s: 20, retries: 0}"
    ours, grid = federated(tmp_path, ["training.clients_per_round=3", federation])
    ours.clients.sample(0)
    ready, pull = time.monotonic() + 4, grid.pull_messages
    grid.pull_messages = lambda names: pull(names) if time.monotonic() > ready else []
    assert ours.step().federation["answered"] >= 2
    assert len(events(tmp_path, "no-quorum")) <= 2


def test_a_client_that_left_and_came_back_is_asked_again(tmp_path):
    ours, grid = federated(tmp_path, ["training.clients_per_round=3", "federation={quorum: 3, deadline_s: 30}"])
    ours.clients.sample(0)
    grid.silent = {101}

    def leave():
        time.sleep(1)
        config = grid.configs.pop(101)
        time.sleep(3)
        grid.configs[201], grid.workers[201] = config, type(grid.workers[101])()

    threading.Thread(target=leave).start()
    assert ours.step().federation == {"asked": 4, "answered": 3, "unreachable": 1}


def test_a_node_that_flower_no_longer_knows_counts_as_unreachable(tmp_path):
    settings = ["partition.clients=4", "training.clients_per_round=4", "federation={deadline_s: 30, retries: 0}"]
    ours, grid = federated(tmp_path, settings)
    ours.clients.sample(0)
    push = grid.push_messages
    grid.push_messages = lambda ms: [""] if ms[0].metadata.dst_node_id in (101, 102) else push(ms)
    assert ours.step().federation == {"asked": 2, "answered": 2, "unreachable": 2}


def test_errors_of_the_superlink_are_tolerated_for_a_limited_time(tmp_path, monkeypatch):
    ours, grid = federated(tmp_path, ["training.clients_per_round=3", "federation={deadline_s: 30, retries: 0}"])
    ours.clients.sample(0)
    request, broken = httpx.Request("POST", "https://superlink"), [True] * 5

    def fails(name, node):
        if node == 101 and broken:
            if len(broken) < 100:
                broken.pop()
            raise httpx.HTTPStatusError("database is locked", request=request, response=httpx.Response(500))

    delay_replies(grid, fails)
    assert ours.step().federation == {"asked": 3, "answered": 3}
    monkeypatch.setattr(messenger, "MAX_OUTAGE_S", 0.0)
    broken += [True] * 1000
    with pytest.raises(httpx.HTTPStatusError):
        ours.step()


def test_a_node_that_became_another_client_is_refused_and_asked_again_which_client_it_is(tmp_path):
    ours, grid = federated(tmp_path, ["training.clients_per_round=3", "federation={retries: 0, quorum: 1}"])
    ours.clients.sample(0)
    grid.configs[100]["partition-id"], grid.configs[101]["partition-id"] = 1, 0
    assert ours.step().federation == {"asked": 3, "answered": 1, "refused": 2, "refused: other-client": 2}
    ours.clients.sample(1)
    assert ours.step().federation == {"asked": 3, "answered": 3}


def test_a_hello_that_flower_lost_is_sent_once_more(tmp_path, monkeypatch):
    monkeypatch.setattr(clients, "AGAIN_S", 0.5)
    ours, grid = federated(
        tmp_path, ["training.clients_per_round=3", "federation={wait_s: 30, quorum: 1, wait_for: 2}"]
    )
    grid.silent.add(102)
    pull = grid.pull_messages
    grid.pull_messages = lambda names: [] if names == ["message-1"] else pull(names)  # the first one to node 101
    assert ours.clients.sample(0) == [0, 1]
    time.sleep(1)
    for _ in range(3):
        ours.clients.registry.poll_online()
    hellos = [message.metadata.dst_node_id for message in grid.waiting.values()]
    assert [hellos.count(node) for node in (101, 102)] == [2, 2]
    assert sorted(event["client"] for event in events(tmp_path, "joined")) == [0, 1]
    assert events(tmp_path, "stranger") == []


@pytest.mark.parametrize("clients", [2, 4])
def test_a_clipped_update_does_not_raise_later_norm_limits(tmp_path, clients):
    settings = [f"partition.clients={clients}", f"training.clients_per_round={clients}", "training.rounds=3"]
    lies = {f"_{i}": changed("up.delta", lambda a: 1000 * a) for i in range(clients // 2, clients)}
    ours, _ = federated(tmp_path, [*settings, "federation={norm_action: clip}"], **lies)
    moved = []
    for _ in range(3):
        before = ours.state.server.x.clone()
        assert ours.step().federation["clipped"] == clients // 2
        moved.append(float((ours.state.server.x - before).norm()))
    assert max(moved) < 3 * moved[0]


def test_a_single_first_update_is_compared_with_the_models_norm(tmp_path):
    ours, grid = federated(
        tmp_path,
        ["federation={wait_s: 2, deadline_s: 2, retries: 0}"],
        _2=changed("up.delta", lambda a: np.full_like(a, 1e6)),
    )
    ours.clients.sample(0)
    grid.silent = {100, 101}
    with pytest.raises(QuorumError, match="too long"):
        ours.step()


def test_a_round_whose_only_upload_is_too_long_has_no_quorum(tmp_path):
    """The other client fails, so there is no other upload to wait for."""
    lie = changed("up.delta", lambda a: np.full_like(a, 1e6))
    ours, grid = federated(
        tmp_path, ["partition.clients=2", "federation={wait_s: 2, deadline_s: 9, retries: 0}"], _0=lie
    )
    ours.clients.sample(0)
    grid.workers[101].answer = lambda facts, arrays: ({"error": "OSError: no disk"}, {})
    with pytest.raises(QuorumError, match="0 clients answered"):
        ours.step()


def test_a_round_does_not_wait_until_the_deadline_for_a_node_that_left(tmp_path):
    settings = ["partition.clients=4", "federation={quorum: 2, deadline_s: 60}"]
    ours, grid = federated(tmp_path, settings)
    first, _ = ours.clients.sample(0)
    grid.silent = {100 + first}

    def leave():
        time.sleep(1)
        del grid.configs[100 + first]

    threading.Thread(target=leave).start()
    start = time.monotonic()
    assert ours.step().federation["answered"] == 2
    assert time.monotonic() - start < 30


def test_an_upload_counts_even_if_its_node_has_left_since(tmp_path):
    ours, grid = federated(
        tmp_path, ["training.clients_per_round=3", "federation={quorum: 3, deadline_s: 2, wait_s: 20, retries: 0}"]
    )
    ours.clients.sample(0)
    ready, pull = time.monotonic() + 5, grid.pull_messages

    def pulled(names):
        (name,) = names
        if grid.waiting[name].metadata.dst_node_id == 102 and time.monotonic() < ready:
            grid.configs.pop(101, None) if time.monotonic() > ready - 3 else None
            return []
        return pull(names)

    grid.pull_messages = pulled
    assert ours.step().federation == {"asked": 3, "answered": 3}


def test_huge_numbers_are_refused_even_without_a_norm_limit(tmp_path):
    ours, _ = federated(
        tmp_path,
        ["training.clients_per_round=3", "training.weighting=samples", "federation={norm_factor: null, retries: 0}"],
        _2=changed("up.delta", lambda a: np.full_like(a, 3e38)),
    )
    assert ours.step().federation == {"asked": 3, "answered": 2, "refused": 1, "refused: too-long": 1}


def test_step_counts_are_compared_with_the_median_if_the_server_cannot_know_them(tmp_path):
    settings = ["training={rounds: 2, clients_per_round: 3, epochs: 1, batch_size: 20, lr: 0.001, steps: null}"]
    settings += ["federation={sample_counts: false, retries: 0}", "data.max_train=90"]
    ours, _ = federated(tmp_path, settings, _2=changed("up.k", lambda a: a * 0 + 1e9))
    ours.clients.registry.sizes = None  # as if nodes have their own data
    assert ours.step().federation == {"asked": 3, "answered": 2, "refused": 1, "refused: too-long": 1}


def test_fast_uploads_that_are_too_long_do_not_displace_others(tmp_path):
    lie = changed("up.delta", lambda a: 1000 * a)
    ours, _ = federated(tmp_path, ["federation={over_selection: 0.5, retries: 0}"], _0=lie)
    assert ours.step().federation == {"asked": 3, "answered": 2, "refused": 1, "refused: too-long": 1}


def test_bytes_of_surplus_replies_are_counted(tmp_path):
    ours, _ = federated(tmp_path, ["federation={over_selection: 0.5}"])
    record = ours.step()
    assert record.federation["surplus"] == 1
    assert record.up_bytes > 2.9 * (record.up_bytes - ours.clients.traffic.wasted_bytes) / 2


def test_a_reply_that_names_one_chunk_many_times_is_refused(tmp_path):
    chunk = ArrayChunk(memoryview(bytes(2**20)))
    array = Array("float32", (4,), "numpy.ndarray", bytes(2**20))
    about = json.loads(get_object_body(array.deflate(), Array))
    bomb = add_header_to_object_body(json.dumps({**about, "arraychunk_ids": [0] * 1000}).encode(), array)
    pull._budget.nbytes = 2**21
    try:
        assert len(pull.LimitedArray.inflate(array.deflate(), {chunk.object_id: chunk}).data) == 2**20
        with pytest.raises(RefusedError, match="too large"):
            pull.LimitedArray.inflate(bomb, {chunk.object_id: chunk})
    finally:
        del pull._budget.nbytes
    assert len(pull.LimitedArray.inflate(array.deflate(), {chunk.object_id: chunk}).data) == 2**20, "another caller's"


def test_a_request_older_than_the_last_answered_one_is_refused(tmp_path):
    """Otherwise the client's memory would become an older round's."""
    ours, grid = federated(tmp_path, [*SCAFFOLD, "training.rounds=4"])
    seen, worker = [], grid.workers[101]
    answer = worker.answer

    def kept(facts, arrays):
        if facts["ask"] == "train":
            seen.append((dict(facts), dict(arrays)))
        return answer(facts, arrays)

    worker.answer = kept
    ours.step()
    ours.step()
    assert "LateError" in answer(*seen[0])[0]["error"]
    ours.step()
    ours.step()
    theirs = simulated([*SCAFFOLD, "training.rounds=4"])
    list(theirs.rounds())
    assert_same(ours, theirs)


def test_an_expired_request_is_not_worked_on(tmp_path):
    ours, grid = federated(tmp_path, [*SCAFFOLD, "training.rounds=2"])
    answer = grid.workers[101].answer
    grid.workers[101].answer = lambda facts, arrays: answer({**facts, "came": facts["came"] - 1e4}, arrays)
    assert ours.step().federation == {"asked": 3, "answered": 2, "failed": 1, "failed: failed": 1}
    assert "before the work began" in events(tmp_path, "failed")[0]["detail"]


@pytest.mark.parametrize("lost", ["refuse", "fresh"])
def test_an_older_copy_of_a_memory_counts_as_lost(tmp_path, lost):
    ours, grid = federated(tmp_path, [*SCAFFOLD, "training.rounds=4", f"federation.lost_memory={lost}"])
    ours.step()
    home = next((tmp_path / "state").glob("*/client-1"))
    shutil.copytree(home, tmp_path / "backup")
    ours.step()
    shutil.rmtree(home)
    shutil.copytree(tmp_path / "backup", home)
    grid.workers[101] = type(grid.workers[101])()
    found = ours.step().federation
    if lost == "fresh":
        assert found == {"asked": 3, "answered": 3, "fresh": 1}
        assert ours.step().federation == {"asked": 3, "answered": 3}
    else:
        assert found == {"asked": 3, "answered": 2, "failed": 1, "failed: failed": 1}
        assert CheckpointError.__name__ in events(tmp_path, "failed")[0]["detail"]


def test_a_mean_that_is_not_finite_leaves_the_state_unchanged(tmp_path):
    simulation = simulated(["training.clients_per_round=3"])
    before, algorithm = simulation.state, simulation.algorithm

    class Overflows:
        def __getattr__(self, name):
            return getattr(algorithm, name)

        def server_update(self, *state):
            after = algorithm.server_update(*state)
            return after._replace(x=after.x * torch.inf)

    simulation.parts = Whole(Overflows())
    with pytest.raises(DivergedError, match="round 1: the clients' mean is not finite"):
        simulation.step()
    assert simulation.state is before
