"""Nodes of unequal numbers of steps send q, which the server checks."""

import json

import pytest
import torch

pytest.importorskip("flwr", reason="Flower needs Python 3.11")

from support.federated import assert_same, changed, federated, read_events, simulated

pytestmark = pytest.mark.usefixtures("restore_threads")
UNEQUAL = ["training.steps=null", "training.epochs=1", "training.batch_size=100", "training.clients_per_round=3"]
UNEQUAL += ["training.rounds=3", "partition.kind=dirichlet", "data.max_train=900"]


@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "fedadamw", "share": "vm"},
        pytest.param({"name": "fedadamw"}, marks=pytest.mark.slow),
        pytest.param({"name": "fedlamb"}, marks=pytest.mark.slow),
    ],
)
def test_nodes_give_the_simulations_numbers_and_compute_a_state_from_its_change(tmp_path, algorithm):
    settings = [*UNEQUAL, f"algorithm={json.dumps(algorithm)}"]
    ours, _ = federated(tmp_path, settings)
    theirs = simulated(settings)
    for record, expected in zip(ours.rounds(), theirs.rounds(), strict=True):
        assert record.federation == {"asked": 3, "answered": 3}
        assert record.up_bytes == expected.up_bytes
    assert_same(ours, theirs)
    t = ours.state.server.t
    assert len(t) == (2 if "share" in algorithm else 1)
    assert not torch.equal(t, t.round()), "clients take unequal numbers of steps"


@pytest.mark.parametrize("lie", [lambda q: q * (1 - 1e-6), lambda q: q * 0, lambda q: q * 0 + 1])
def test_a_q_that_is_not_that_of_the_steps_is_refused(tmp_path, lie):
    ours, _ = federated(tmp_path, [*UNEQUAL, "federation.retries=0"], _1=changed("up.q", lie))
    assert ours.step().federation["refused: steps"] == 1
    (event,) = read_events(tmp_path, "refused")
    assert event["client"] == 1
    assert "its q is [" in event["detail"]


@pytest.mark.slow
def test_nodes_whose_samples_nobody_knows_send_q_too_and_it_is_not_clipped(tmp_path):
    unknown = [*UNEQUAL, "federation={sample_counts: false, norm_action: clip, norm_factor: 1.01}"]
    ours, _ = federated(tmp_path, unknown)
    ours.clients.registry.sizes = None  # as if nodes have their own data
    assert "clipped" in ours.step().federation
    fields = {name for event in read_events(tmp_path, "clipped") for name in event["fields"].split(", ")}
    assert "k" in fields
    assert "q" not in fields
    down = ours.algorithm.broadcast(ours.state.server)
    assert 0 < float(down.t) < 10


def test_nodes_of_a_run_that_began_without_q_are_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr("fedadamw.prepare.simulation.has_unequal_steps", lambda *_, **__: False)
    ours, _ = federated(tmp_path, UNEQUAL)
    record = ours.step()
    assert record.federation == {"asked": 3, "answered": 3}
    assert ours.clients.registry.messenger.facts["unequal_steps"] is False
    theirs = simulated(UNEQUAL)
    theirs.step()
    assert_same(ours, theirs)
