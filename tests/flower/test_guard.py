"""An invalid upload is counted with its reason and changes nothing, whatever a node sends."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from flwr.app import Array
from support.federated import LIES, assert_same, changed, federated, federated_step, simulated

from fedadamw.engine.clients import QuorumError
from fedadamw.flower.wire import ArraySpec, RefusedError, read_arrays
from fedadamw.models import vision
from fedadamw.validation import InputError

pytestmark = pytest.mark.usefixtures("restore_threads")


@pytest.mark.parametrize("name", LIES)
def test_an_invalid_upload_is_counted_with_its_reason_and_changes_nothing(tmp_path, name):
    lie, reason = LIES[name]
    settings = ["training.clients_per_round=3", "training.rounds=1", "federation.retries=0"]
    ours, _ = federated(tmp_path, settings, _2=lie)
    (record,) = ours.rounds()
    assert record.federation == {"asked": 3, "answered": 2, "refused": 1, f"refused: {reason}": 1}
    assert (record.clients, record.rejected) == (2, 1)
    theirs = simulated(settings, clients=[0, 1])
    theirs.step()
    assert_same(ours, theirs)
    events = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    (event,) = (event for event in events if event["event"] == "refused")
    assert (event["client"], event["reason"]) == (2, reason)


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04" + bytes(60),
        b"PK\x05\x06" + bytes(18),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,)}\n"),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (10" + 30 * b"0" + b",)}\n"),
        npy(b"{'descr': ((),()), 'fortran_order': False, 'shape': (4,)}\n"),
        npy(b"{[]: 1}\n"),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (4,)\n"),
        npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (4,)}\n") + bytes(16),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}\n") + bytes(15),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}\n") + bytes(17),
        npy(b"(" * 200),
    ],
)
def test_malformed_array_bytes_are_refused(data):
    with pytest.raises(RefusedError) as refused:
        read_arrays({"a": Array("float32", (4,), "numpy.ndarray", data)}, {"a": ArraySpec((4,), "float32")})
    assert refused.value.reason == "garbage"


@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_refused_without_another_error(data, magic):
    data = b"\x93NUMPY\x01\x00" + data if magic else data
    with pytest.raises(RefusedError):
        read_arrays({"a": Array("float32", (4,), "numpy.ndarray", data)}, {"a": ArraySpec((4,), "float32")})


def test_a_long_refusal_detail_is_cut():
    with pytest.raises(RefusedError) as refused:
        read_arrays({"x" * 10**6: Array(np.zeros(1))}, {})
    assert len(str(refused.value)) < 400


def test_a_reply_sent_under_another_nodes_name_does_not_count(tmp_path):
    ours, grid = federated(tmp_path, ["training.clients_per_round=3", "federation={deadline_s: 3, retries: 0}"])
    ours.clients.sample(0)
    honest = grid.pull_messages

    def pulled(names):
        """Node 102 replies as node 101, whose own replies are lost, and sends a message that is not a reply."""
        found = list(honest(names))
        for message in found:
            if message.metadata.src_node_id == 101:
                message.metadata.__dict__["_src_node_id"] = 102
            elif message.metadata.src_node_id == 102:
                message.metadata.__dict__["_reply_to_message_id"] = ""
        return found

    grid.pull_messages = pulled
    with pytest.raises(QuorumError):
        federated_step(ours, wait_s=0)
    assert ours.clients.traffic.counts["overdue"] >= 2


@pytest.mark.parametrize("error", [IndexError("chunk"), AttributeError("no"), RecursionError(), MemoryError()])
def test_a_reply_that_flower_cannot_read_is_garbage(tmp_path, error):
    ours, grid = federated(tmp_path, ["training.clients_per_round=3", "federation.retries=0"])
    ours.clients.sample(0)
    honest = grid.pull_messages

    def pulled(names):
        if grid.waiting[next(iter(names))].metadata.dst_node_id == 102:
            raise error
        return honest(names)

    grid.pull_messages = pulled
    assert ours.step().federation == {"asked": 3, "answered": 2, "refused": 1, "refused: garbage": 1}


def test_statistics_that_are_too_long_or_have_negative_variances_are_refused(tmp_path):
    settings = ["model.name=resnet-nano", "model.norm=batch", "data.max_train=90", "data.max_test=20"]
    settings += ["training.clients_per_round=3", "training.rounds=1", "federation={retries: 0}"]
    for lie, reason in ((lambda a: -np.abs(a) - 1e-3, "negative"), (lambda a: 1e4 * a, "too-long")):
        ours, _ = federated(tmp_path / reason, settings, _2=changed("statistics", lie))
        assert ours.step().federation == {"asked": 3, "answered": 2, "refused": 1, f"refused: {reason}": 1}


def test_a_huge_constant_in_the_statistics_is_accepted_and_stays_unchanged(tmp_path, monkeypatch):
    build, least = vision.build, torch.finfo(torch.float32).min

    def masked(*args, **how):
        built = build(*args, **how)
        built.model.register_buffer("mask", torch.tensor([0.0, least]))
        return built

    monkeypatch.setattr(vision, "build", masked)
    settings = ["training.clients_per_round=3", "training.rounds=1", "federation.retries=0"]
    ours, _ = federated(tmp_path, settings, _2=changed("statistics", lambda a: a / 2))
    assert ours.step().federation == {"asked": 3, "answered": 2, "refused": 1, "refused: too-long": 1}
    assert ours.state.statistics.tolist() == [0.0, least]


@pytest.mark.parametrize("told", [{"num-examples": 10**15}, {"held-out": 3}, {"held-out": 0.0}, {"held-out": [0]}])
def test_a_node_that_reports_other_numbers_of_samples_than_it_has_is_left_out(tmp_path, told):
    ours, grid = federated(tmp_path, ["federation={quorum: 2, wait_for: 2, wait_s: 60}"])
    work = grid.workers[102].answer
    grid.workers[102].answer = lambda *a: ({**work(*a)[0], **told}, {})
    ours.step()
    assert '"reason": "samples"' in (tmp_path / "run/events.jsonl").read_text()


def test_a_robust_mean_must_be_possible_at_the_quorum(tmp_path):
    settings = ["training.clients_per_round=3", "training.mean=trimmed-mean"]
    with pytest.raises(InputError, match="needs 3 clients a round, not 2"):
        federated(tmp_path, settings)
    ours, _ = federated(tmp_path, [*settings, "federation.quorum=3"])
    assert ours.step().clients == 3


def test_a_long_update_is_clipped_with_norm_action_clip(tmp_path):
    three = ["training.clients_per_round=3", "training.rounds=1", "federation.norm_action=clip"]
    ours, _ = federated(tmp_path, three, _2=changed("up.delta", lambda a: 1000 * a))
    (record,) = ours.rounds()
    assert record.federation == {"asked": 3, "answered": 3, "clipped": 1}
    moved = float((ours.state.server.x - simulated(three).state.server.x).norm())
    ours, _ = federated(tmp_path / "honest", three)
    ours.step()
    usual = float((ours.state.server.x - simulated(three).state.server.x).norm())
    assert usual < moved < 10 * usual


def test_an_update_longer_than_max_norm_is_refused(tmp_path):
    ours, _ = federated(tmp_path, ["federation={max_norm: 1.0e-6, wait_s: 1}"])
    with pytest.raises(QuorumError, match="0 clients answered, 1 are needed"):
        ours.step()
