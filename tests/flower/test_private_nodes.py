"""Nodes with differential privacy of samples: what they demand, spend and send."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support.cases import CASES

pytest.importorskip("flwr", reason="Flower needs Python 3.11")
pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")

from flwr.app import Array
from support.federated import assert_same, federated, read_events, simulated
from support.private_nodes import (
    BUDGET,
    EVERYONE,
    PRIVATE,
    SEED,
    SMALL,
    answer,
    charges,
    meet,
    of_trainings,
    private,
    requests_of,
    with_settings,
)

from fedadamw.engine.clients import QuorumError
from fedadamw.flower.node.ledger import Ledger, read_spent
from fedadamw.flower.node.node import Node
from fedadamw.flower.node.worker import Worker
from fedadamw.flower.server.check_upload import check_metrics
from fedadamw.flower.wire import RefusedError
from fedadamw.io.yaml_text import read_yaml
from fedadamw.privacy.accountant import Mechanism, compute_epsilon
from fedadamw.randomness import Seeded
from fedadamw.settings.load import parse_settings

pytestmark = pytest.mark.usefixtures("restore_threads")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """The requests of the first round of a federation, by kind, and the numbers and arrays of its answers."""
    folder = tmp_path_factory.mktemp("asked")
    ours, grid = private(folder, [*EVERYONE, "federation.quorum=3"])
    told = []
    grid.lies = dict.fromkeys(grid.configs, lambda arrays, numbers: told.append((set(arrays), dict(numbers))))
    assert ours.step().federation == {"asked": 3, "answered": 3}
    events = read_events(folder, "joined")
    return {"hello": requests_of(grid, "hello")[0], "train": requests_of(grid, "train")[0], "told": (told, events)}


@pytest.mark.parametrize(
    "name", ["fedadamw-mean-v", *(pytest.param(name, marks=pytest.mark.slow) for name in ("scaffold", "fedavg"))]
)
def test_nodes_with_seeded_noise_give_the_loops_numbers(tmp_path, name):
    case = CASES[name]
    settings = [f"algorithm={json.dumps({'name': case.name, **case.settings})}", "training.upload=int8"]
    settings += ["training.rounds=2", "training.evaluate_every=2", f"training.lr={case.lr}"]
    ours, _ = private(tmp_path, settings, entropy=Seeded(SEED))
    theirs = simulated([*PRIVATE, *settings])
    for record, expected in zip(ours.rounds(), theirs.rounds(), strict=True):
        assert record.federation == {"asked": 2, "answered": 2}  # no upload is too long: noise has the same norm
        assert record.test_metrics == expected.test_metrics
    assert_same(ours, theirs)
    assert sum(len(charges(tmp_path / f"state-{node}")) for node in range(3)) == 4


def test_nothing_leaves_a_node_but_its_number_and_what_is_made_of_noise(asked, tmp_path):
    numbers, arrays = answer(asked["hello"], tmp_path)
    assert numbers.keys() == {"client", "layout"}
    assert arrays == {}
    told, joined = asked["told"]
    for arrays, numbers in told:
        assert arrays == {"up.delta", "up.m", "up.v", "up.k", "statistics"}
        assert numbers.keys() == {"client"}
    assert [event["samples"] for event in joined] == [None] * 3


def test_only_python_seeds_the_noise_and_every_answer_has_its_own_and_is_charged(asked, tmp_path):
    seeds = {"seed": SEED, "entropy": SEED, "entropy-seed": SEED, "noise-seed": SEED}
    worker = Worker()
    answers = [answer(asked["train"], tmp_path, worker, seeds)[1] for _ in range(2)]
    answers.append(answer(asked["train"], tmp_path / "elsewhere", None, seeds)[1])
    answers += [answer(asked["train"], tmp_path / "seeded", Worker(Seeded(SEED)))[1] for _ in range(2)]
    first, second, third, fourth, fifth = (arrays["up.delta"].numpy() for arrays in answers)
    assert (first != second).any()
    assert (first != third).any()
    assert (first != fourth).any()
    assert (fourth == fifth).all()
    assert [charge.mechanism for charge in charges(tmp_path)] == [of_trainings(1)] * 2


def test_requests_that_are_late_or_stale_are_not_charged(asked, tmp_path):
    assert "LateError" in answer(asked["train"], tmp_path, seconds=-1.0)[0]["error"]
    request, _ = asked["train"]
    assert answer((request, {}), tmp_path, form="known", state="unknown")[0] == {"stale": 1}
    assert "missing-array" in answer((request, {}), tmp_path)[0]["error"]
    assert charges(tmp_path) == []


def test_a_node_that_tells_its_loss_or_size_is_refused():
    assert np.isnan(check_metrics({"client": 1}, 1, None, tells_loss=False))
    with pytest.raises(RefusedError, match="records: it tells its loss"):
        check_metrics({"client": 1, "loss": 0.5}, 1, None, tells_loss=False)
    with pytest.raises(RefusedError, match="samples: the node reports 4"):
        check_metrics({"client": 1, "num-examples": 4}, 1, None, tells_loss=False)


def test_a_node_whose_budget_is_spent_declines_and_the_run_goes_on(tmp_path):
    """Node 0 has a budget for one training, of all runs together."""
    one = compute_epsilon([of_trainings(1)], 1e-6)
    budget = {"privacy-epsilon": one, "privacy-delta": 1e-6}
    more = [*EVERYONE, "training.rounds=3", "training.evaluate_every=3", "federation.quorum=2"]
    ours, _ = private(tmp_path, more, _0=budget)
    declined = {"asked": 3, "answered": 2, "declined": 1, "declined: declined": 1}
    expected = [{"asked": 3, "answered": 3}, declined, {"asked": 2, "answered": 2}]
    assert [record.federation for record in ours.rounds()] == expected
    (event,) = read_events(tmp_path, "declined")
    assert (event["round"], event["client"], event["detail"]) == (2, 0, f"client 0: {BUDGET}")
    assert [len(charges(tmp_path / f"state-{node}")) for node in range(3)] == [1, 3, 3]
    spent = read_spent(tmp_path / "state-0")
    assert (spent.epsilon, spent.delta) == (one, 1e-6)
    assert spent.mechanisms == [of_trainings(1)]

    state = {"state-dir": str(tmp_path / "state-0")}
    ours, _ = private(
        tmp_path / "again", ["federation.quorum=3", "federation.wait_s=0", *EVERYONE], _0={**budget, **state}
    )
    meet(ours, 2)  # another run: the node declines at its hello
    (event,) = read_events(tmp_path / "again", "stranger")
    assert (event["reason"], event["detail"]) == ("declined", f"client 0: {BUDGET}")
    with pytest.raises(QuorumError, match=f"2 of 3 clients are online, 3 are needed .*; client 0: {BUDGET}"):
        ours.step()


def test_a_node_that_demands_as_much_as_the_run_has_takes_part(asked, tmp_path):
    budget = {"privacy-epsilon": 100, "privacy-noise": 1.5, "privacy-unit": "sample"}
    assert answer(asked["hello"], tmp_path, config=budget)[0].keys() == {"client", "layout"}
    assert not Ledger.of(tmp_path).begun


def test_a_node_checks_the_model_too(asked, tmp_path):
    hello = with_settings(asked["hello"], lambda raw: raw["model"].update(name="resnet-nano", norm="batch"))
    assert "BatchNorm" in answer(hello, tmp_path)[0]["declined"]


def test_a_training_that_fails_stays_charged_and_says_nothing_of_the_data(asked, tmp_path, monkeypatch, capsys):
    def fail(self, answer, **_):
        raise ValueError("sample 17 says SECRET")

    monkeypatch.setattr(Node, "_pack", fail)
    numbers, arrays = answer(asked["train"], tmp_path)
    assert numbers == {"error": "an error on the node; its log says more"}
    assert arrays == {}
    assert len(charges(tmp_path)) == 1
    assert "SECRET" in capsys.readouterr().err


def test_a_run_without_privacy_is_charged_to_a_ledger_that_was_begun(asked, tmp_path):
    def without(raw):
        raw.update(privacy=None)

    plain, hello = with_settings(asked["train"], without), asked["hello"]
    assert "loss" in answer(plain, tmp_path)[0]
    assert not Ledger.of(tmp_path).begun
    answer(asked["train"], tmp_path)
    assert "loss" in answer(plain, tmp_path)[0]
    assert read_spent(tmp_path).mechanisms == [of_trainings(1), Mechanism(0.0, 1.0, 3)]
    assert answer(hello, tmp_path, config={"privacy-epsilon": 99})[0] == {"declined": BUDGET}
    assert answer(hello, tmp_path / "new", config={"privacy-epsilon": 99})[0].keys() == {"client", "layout"}


@pytest.mark.slow
def test_nodes_that_share_a_state_folder_share_a_ledger(asked, tmp_path):
    for client in (0, 1):
        answer(asked["train"], tmp_path, config={"partition-id": client})
    assert [charge.client for charge in charges(tmp_path)] == [0, 1]


def test_a_damaged_ledger_is_refused_and_the_server_sees_no_path(asked, tmp_path, capsys):
    worker = Worker()
    answer(asked["train"], tmp_path, worker)
    (tmp_path / "privacy/ledger.jsonl").unlink()
    for ask in ("hello", "train"):
        numbers, arrays = answer(asked[ask], tmp_path, worker)
        assert numbers == {"declined": "its privacy ledger cannot be charged"}
        assert arrays == {}
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("this node declines: its privacy ledger cannot be charged (")
    assert "ledger.jsonl is missing; what the node has spent cannot be known; restore the whole folder" in told


def test_a_private_node_takes_no_part_in_evaluations(asked, tmp_path):
    numbers, sent = answer(asked["train"], tmp_path, ask="evaluate")
    assert numbers == {"declined": "it takes no part in evaluations"}
    assert sent == {}


SCRIPT = """
import json, os, signal, sys
import numpy as np
from flwr.app import Array
from fedadamw.flower.node.node import Node
from fedadamw.flower.node.worker import Worker

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(Node, sys.argv[1], kill)
request = json.load(open("request.json"))
arrays = {name: Array(a) for name, a in np.load("arrays.npz").items()}
Worker().answer(request, arrays)
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["_check_finite", "_pack"])
def test_a_node_that_is_killed_between_charge_and_send_has_charged(asked, tmp_path, place):
    request, arrays = asked["train"]
    config = {"partition-id": 0, "state-dir": str(tmp_path / "state")}
    request = {**request, "came": time.time(), "seconds": 600.0, "config": config}
    (tmp_path / "request.json").write_text(json.dumps(request))
    np.savez(tmp_path / "arrays.npz", **{name: array.numpy() for name, array in arrays.items()})
    done = subprocess.run([sys.executable, "-c", SCRIPT, place], cwd=tmp_path, check=False, env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    assert read_spent(tmp_path / "state").trainings == 1
    numbers, sent = answer(asked["train"], tmp_path / "state")  # the server asks again
    assert numbers == {"client": 0}
    assert isinstance(sent["up.delta"], Array)
    assert read_spent(tmp_path / "state").trainings == 2


def test_nodes_get_the_noise_that_keeps_to_an_epsilon(tmp_path):
    ours, grid = federated(tmp_path, ["privacy={epsilon: 3, clip: 0.5}", *SMALL])
    meet(ours, 3)
    sent = parse_settings(read_yaml("settings", requests_of(grid, "hello")[0][0]["settings"])).privacy
    assert sent.epsilon is None
    assert 2.9 < compute_epsilon([of_trainings(2, sent.noise_multiplier)], 1e-5) <= 3.0
