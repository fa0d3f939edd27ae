"""Nodes with differential privacy of samples: what they demand, spend and send."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from support.cases import CASES

pytest.importorskip("flwr", reason="Flower needs Python 3.11")
pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")

from flwr.app import Array
from support.federated import COMMON, assert_same, federated, read_events, simulated
from support.grids import LocalGrid

from fedadamw.flower.node.demands import Demands, read_demands
from fedadamw.flower.node.ledger import Ledger, read_spent
from fedadamw.flower.node.node import Node
from fedadamw.flower.node.worker import Worker
from fedadamw.flower.protocol import ARRAYS, REQUEST, DeclinedError
from fedadamw.flower.server.rounds import QuorumError
from fedadamw.io.yaml_text import read_yaml
from fedadamw.prepare.simulation import prepare
from fedadamw.privacy.accountant import compute_epsilon
from fedadamw.randomness import Seeded
from fedadamw.settings.load import load, parse_settings
from fedadamw.validation import InputError

pytestmark = pytest.mark.usefixtures("restore_threads")

SMALL = ["data.max_train=120", "data.max_test=20"]
PRIVATE = ["privacy={noise_multiplier: 1.5, clip: 0.5}", *SMALL]
EVERYONE = ["training.clients_per_round=3"]
SEED = 0  # that of the experiment


def private(tmp_path, settings=(), clients=3, entropy=None, **config):
    """Return a federation with privacy of samples, its grid, and the state folder of each node.

    config: `_1={...}` is added to that of node 1, `all={...}` to everyone's.
    """
    grid = LocalGrid(clients, tmp_path / "state", entropy=entropy)
    for i in range(clients):
        own = {"state-dir": str(tmp_path / f"state-{i}"), **config.get("all", {}), **config.get(f"_{i}", {})}
        grid.configs[100 + i] |= own
    ours, _ = federated(tmp_path, [*PRIVATE, *settings], grid)
    return ours, grid


def meet(ours, joined):
    """Wait until so many nodes have joined, and the others have declined."""
    registry, until = ours.clients.registry, time.monotonic() + 60
    while len(registry.poll_online()) < joined or len(registry._left_out) < registry.clients - joined:
        assert time.monotonic() < until
        time.sleep(0.05)


def charged(tmp_path, node):
    """Return how many trainings a node has charged."""
    return len(Ledger.of(tmp_path / f"state-{node}").charges())


@pytest.mark.parametrize("name", ["fedadamw-mean-v", "scaffold", "fedavg"])
def test_nodes_with_seeded_noise_give_the_loops_numbers(tmp_path, name):
    case = CASES[name]
    settings = [f"algorithm={json.dumps({'name': case.name, **case.settings})}", "training.upload=int8"]
    settings += ["training.rounds=3", f"training.lr={case.lr}"]
    ours, _ = private(tmp_path, settings, entropy=Seeded(SEED))
    theirs = simulated([*PRIVATE, *settings])
    for record, expected in zip(ours.rounds(), theirs.rounds(), strict=True):
        assert record.federation == {"asked": 2, "answered": 2}  # no upload is too long: noise has the same norm
        assert record.test_metrics == expected.test_metrics
    assert_same(ours, theirs)
    assert sum(charged(tmp_path, node) for node in range(3)) == 6


def test_two_equal_runs_differ_and_nothing_but_python_seeds_the_noise(tmp_path):
    models = []
    for name in ("a", "b"):
        seeds = {"seed": SEED, "entropy-seed": SEED, "noise-seed": SEED}
        ours, _ = private(tmp_path / name, [f"seed={SEED}", "training.rounds=1"], all=seeds)
        ours.step()
        models.append(ours.state.tensors()["server.x"].clone())
    assert not torch.equal(*models)


def requests_of(grid, ask):
    """Return the requests of a kind that were sent, with their arrays."""
    sent = [(dict(m.content.config_records[REQUEST]), m.content.array_records) for m in grid.waiting.values()]
    return [(r, dict(a[ARRAYS]) if ARRAYS in a else {}) for r, a in sent if r["ask"] == ask]


def answer(request, arrays, config, worker=None):
    return (worker or Worker()).answer({**request, "came": time.time(), "config": config}, arrays)


def test_nothing_leaves_a_node_but_its_number_and_what_is_made_of_noise(tmp_path):
    ours, grid = private(tmp_path)
    told = []
    grid.lies = dict.fromkeys(grid.configs, lambda arrays, numbers: told.append((set(arrays), dict(numbers))))
    ours.step()
    request, _ = requests_of(grid, "hello")[0]
    numbers, arrays = answer(request, {}, grid.configs[100])
    assert numbers.keys() == {"client", "layout"}
    assert arrays == {}
    for arrays, numbers in told:
        assert arrays == {"up.delta", "up.m", "up.v", "up.k", "statistics"}
        assert numbers.keys() == {"client"}
    assert [event["samples"] for event in read_events(tmp_path, "joined")] == [None] * 3


def test_a_node_that_tells_its_loss_or_size_is_refused(tmp_path):
    ours, grid = private(tmp_path, EVERYONE)
    grid.lies = {
        100: lambda _, numbers: numbers.update(loss=0.5),
        101: lambda _, numbers: numbers.update({"num-examples": 400}),
    }
    expected = {"asked": 3, "answered": 1, "refused": 2, "refused: records": 1, "refused: samples": 1}
    ours.clients.federation = ours.clients.federation.model_copy(update={"quorum": 1})
    ours.clients.quorum = 1
    assert ours.step().federation == expected


def test_a_node_whose_budget_is_spent_declines_and_the_run_goes_on(tmp_path):
    """Node 0 has a budget for two trainings of all runs."""
    _, size = prepared_sizes()
    two = compute_epsilon([mechanism(size, 2)], 1e-6)
    budget = {"privacy-epsilon": two, "privacy-delta": 1e-6}
    more = [*EVERYONE, "training.rounds=4", "federation={quorum: 2, wait_s: 2}"]
    ours, _ = private(tmp_path, more, _0=budget)
    counts = [record.federation for record in ours.rounds()]
    whole = {"asked": 3, "answered": 3}
    declined = {"asked": 3, "answered": 2, "declined": 1, "declined: declined": 1}
    assert counts == [whole, whole, declined, {"asked": 2, "answered": 2}]
    (event,) = read_events(tmp_path, "declined")
    assert (event["round"], event["client"], event["reason"]) == (3, 0, "declined")
    assert event["detail"] == "client 0: its own privacy budget does not cover another training"
    assert [charged(tmp_path, node) for node in range(3)] == [2, 4, 4]
    spent = read_spent(tmp_path / "state-0")
    assert (spent.epsilon, spent.delta) == (two, 1e-6)
    assert compute_epsilon(spent.mechanisms, 1e-6) <= two

    own = {"state-dir": str(tmp_path / "state-0")}
    ours, _ = private(tmp_path / "again", more, _0={**budget, **own})
    meet(ours, 2)
    (event,) = read_events(tmp_path / "again", "stranger")  # another run: the node declines at its hello
    assert event["reason"] == "declined"
    assert "budget" in event["detail"]


def prepared_sizes():
    """Return the federation's experiment, and the number of samples of client 0."""
    experiment = load("digits", [*COMMON, *PRIVATE])
    return experiment, int(prepare(experiment).partition.sizes[0])


def mechanism(size, trainings):
    from fedadamw.privacy.accountant import Mechanism

    return Mechanism(1.5, min(1.0, 20 / size), 3 * trainings)


def test_a_run_without_quorum_says_why_its_nodes_declined(tmp_path):
    budget = {"privacy-epsilon": 0.01}
    ours, _ = private(tmp_path, ["federation.wait_s=0"], all=budget)
    meet(ours, 0)
    with pytest.raises(QuorumError, match="client .: its own privacy budget does not cover another training"):
        ours.step()
    assert [charged(tmp_path, node) for node in range(3)] == [0, 0, 0]


WEAKER = {
    "none": (["privacy=null"], {"privacy-unit": "sample"}, "only with privacy.unit=sample"),
    "no privacy, budget": (["privacy=null"], {"privacy-epsilon": 8}, "only with privacy.unit=sample"),
    "of clients": (["privacy.unit=client"], {"privacy-unit": "sample"}, "only with privacy.unit=sample"),
    "no noise": (["privacy.noise_multiplier=0"], {"privacy-unit": "sample"}, "noise_multiplier above 0"),
    "less noise": ([], {"privacy-noise": 2}, "privacy.noise_multiplier is below what it demands"),
    "tiny clip": (["privacy.clip=1e-30"], {"privacy-unit": "sample"}, "privacy.clip is not between"),
}


@pytest.mark.parametrize("kind", WEAKER)
def test_a_node_declines_runs_with_less_privacy_than_it_demands(tmp_path, kind, capsys):
    settings, demand, told = WEAKER[kind]
    worker = Worker()
    experiment = load("digits", [*COMMON, *PRIVATE, *settings])
    config = {"partition-id": 0, "state-dir": str(tmp_path), **demand}
    about = {"settings": experiment.to_yaml(), "about": "{}", "federation": "run", "seconds": 60.0}
    for ask in ("hello", "train", "evaluate"):
        numbers, arrays = answer({**about, "ask": ask}, {}, config, worker)
        assert told in numbers["declined"]
        assert "\n" not in numbers["declined"]
        assert arrays == {}
    assert not re.search(r"\b2\b|privacy-noise", numbers["declined"])  # what it demands is in its own log
    assert ("privacy-noise=2" in capsys.readouterr().err) == (kind == "less noise")
    assert not Ledger.of(tmp_path).begun


def test_the_server_shows_which_node_declines(tmp_path):
    ours, _ = private(tmp_path, ["federation.wait_for=2"], _1={"privacy-noise": 2.0}, _2={"privacy-noise": 1.5})
    meet(ours, 2)
    assert ours.step().federation["answered"] == 2
    (event,) = read_events(tmp_path, "stranger")
    assert event["detail"] == "client 1: privacy.noise_multiplier is below what it demands"


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"privacy-epsilo": 3}, "privacy-epsilo is unknown; use privacy-unit, privacy-noise"),
        ({"privacy-unit": "client"}, "only one that it can see to is 'sample'"),
        ({"privacy-epsilon": 0}, "privacy-epsilon is 0"),
        ({"privacy-epsilon": "3"}, "give a number"),
        ({"privacy-epsilon": True}, "give a number"),
        ({"privacy-noise": -1}, "give a number from 0"),
        ({"privacy-epsilon": float("nan")}, "give a number"),
        ({"privacy-delta": 1e-5}, "give both"),
        ({"privacy-epsilon": 1, "privacy-delta": 1}, "below 1"),
        ({"privacy-epsilon": 1, "privacy-delta": 0}, "above 0"),
    ],
)
def test_demands_that_are_not_clear_are_refused(config, told):
    with pytest.raises(InputError, match=re.escape(told)):
        read_demands(config)


def test_demands_are_read():
    assert read_demands({"partition-id": 1}) == Demands()
    assert read_demands({"privacy-unit": "sample"}) == Demands(samples=True)
    assert read_demands({"privacy-noise": 1}) == Demands(samples=True, noise=1.0)
    assert read_demands({"privacy-epsilon": 3}) == Demands(samples=True, epsilon=3.0, delta=1e-5)


def test_a_node_trusts_no_settings_of_the_server(tmp_path):
    config = {"partition-id": 0, "state-dir": str(tmp_path), "privacy-unit": "sample"}
    tricks = {
        "training.clip=1.0": "training.clip",
        "federation.sample_counts=true": "federation.sample_counts",
        "training.weighting=samples": "training.weighting",
        "training.epochs=1": "training.epochs",
        "training.client_evaluation=1": "evaluations",
    }
    for trick, told in tricks.items():
        experiment = load("digits", [*COMMON, *PRIVATE, "partition.held_out=0.2", trick])
        request = {"settings": experiment.to_yaml(), "about": "{}", "federation": "run", "ask": "hello"}
        numbers, _ = answer({**request, "seconds": 60.0}, {}, config)
        assert told in numbers["declined"], trick


def test_retries_and_surplus_answers_are_charged_and_stale_requests_are_not(tmp_path):
    ours, grid = private(tmp_path, ["training.rounds=1", "federation.over_selection=0.5"])
    counts = ours.step().federation
    assert counts == {"asked": 3, "answered": 2, "surplus": 1}
    assert [charged(tmp_path, node) for node in range(3)] == [1, 1, 1]
    request, arrays = requests_of(grid, "train")[0]
    answers = [answer(request, arrays, grid.configs[100], grid.workers[100]) for _ in range(2)]
    assert charged(tmp_path, 0) == 3
    first, second = (a["up.delta"].numpy() for _, a in answers)
    assert (first != second).any()  # each has noise of its own
    late = {**request, "seconds": -1.0}
    assert "LateError" in answer(late, arrays, grid.configs[100], grid.workers[100])[0]["error"]
    stale = {**request, "form": "known", "state": "unknown"}
    assert answer(stale, {}, grid.configs[100], grid.workers[100])[0] == {"stale": 1}
    assert charged(tmp_path, 0) == 3


def test_a_training_that_fails_stays_charged_and_says_nothing_of_the_data(tmp_path, monkeypatch, capsys):
    ours, _ = private(tmp_path, ["federation={retries: 1, wait_s: 0, quorum: 1}"])

    def fail(self, answer, **_):
        raise ValueError("sample 17 says SECRET")

    monkeypatch.setattr(Node, "_pack", fail)
    meet(ours, 3)
    with pytest.raises(QuorumError, match=r"an error on the node; its log says more"):
        ours.step()
    assert sum(charged(tmp_path, node) for node in range(3)) >= 4  # two clients, each asked again
    assert "SECRET" not in (tmp_path / "run/events.jsonl").read_text()
    assert "SECRET" in capsys.readouterr().err


def test_a_run_without_privacy_is_charged_to_a_ledger_that_was_begun(tmp_path):
    ours, _ = private(tmp_path, ["privacy=null", "training.rounds=1"])
    ours.step()
    assert not any(Ledger.of(tmp_path / f"state-{node}").begun for node in range(3))
    ours, _ = private(tmp_path / "b", [*EVERYONE, "training.rounds=1"])
    ours.step()
    states = {f"_{i}": {"state-dir": str(tmp_path / "b" / f"state-{i}")} for i in range(3)}
    ours, _ = private(tmp_path / "c", ["privacy=null", "training.rounds=1"], **states)
    ours.step()
    spent = [compute_epsilon(read_spent(tmp_path / "b" / f"state-{i}").mechanisms, 1e-5) for i in range(3)]
    assert sorted(spent)[1:] == [float("inf")] * 2  # of the two that took part
    budgets = {name: {**state, "privacy-epsilon": 99} for name, state in states.items()}
    ours, _ = private(tmp_path / "d", ["federation.wait_s=0"], **budgets)
    meet(ours, 1)
    with pytest.raises(QuorumError, match="its own privacy budget does not cover another training"):
        ours.step()


def test_two_nodes_that_share_a_state_folder_share_a_ledger(tmp_path):
    shared = {"state-dir": str(tmp_path / "state-0")}
    ours, _ = private(tmp_path, EVERYONE, all=shared)
    list(ours.rounds())
    assert charged(tmp_path, 0) == 6


def test_a_damaged_ledger_is_refused_and_the_server_sees_no_path(tmp_path, capsys):
    ours, grid = private(tmp_path, [*EVERYONE, "federation={quorum: 2, retries: 0}"])
    ours.step()
    (tmp_path / "state-0/privacy/ledger.jsonl").unlink()
    assert ours.step().federation == {"asked": 3, "answered": 2, "declined": 1, "declined: declined": 1}
    (event,) = read_events(tmp_path, "declined")
    assert event["detail"] == "client 0: its privacy ledger cannot be charged"
    assert "ledger.jsonl is missing" in capsys.readouterr().err


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
def test_a_node_that_is_killed_between_charge_and_send_has_charged(tmp_path, place):
    import numpy as np

    ours, grid = private(tmp_path, ["training.clients_per_round=1"])
    ours.step()
    (request, arrays), *_ = requests_of(grid, "train")
    config = {**grid.configs[100], "state-dir": str(tmp_path / "killed"), "partition-id": 0}
    request = {**request, "came": time.time(), "seconds": 600.0, "config": config}
    (tmp_path / "request.json").write_text(json.dumps(request))
    np.savez(tmp_path / "arrays.npz", **{name: array.numpy() for name, array in arrays.items()})
    done = subprocess.run([sys.executable, "-c", SCRIPT, place], cwd=tmp_path, check=False, env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    assert read_spent(tmp_path / "killed").trainings == 1
    numbers, sent = answer(request, arrays, config)  # the server asks again
    assert numbers == {"client": 0}
    assert isinstance(sent["up.delta"], Array)
    assert read_spent(tmp_path / "killed").trainings == 2


def test_evaluation_over_nodes_is_refused_with_privacy(tmp_path):
    for unit in ("sample", "client"):
        more = ["partition.held_out=0.2", "training.client_evaluation=1", f"privacy.unit={unit}"]
        with pytest.raises(InputError, match="training.client_evaluation=1: no epsilon counts what the scores"):
            prepare(load("digits", [*COMMON, *PRIVATE, *more]), remote=True)


def test_a_private_node_takes_no_part_in_evaluations(tmp_path):
    ours, grid = private(tmp_path)
    ours.step()
    request, arrays = requests_of(grid, "train")[0]
    numbers, sent = answer({**request, "ask": "evaluate"}, arrays, grid.configs[100], grid.workers[100])
    assert numbers == {"declined": "it takes no part in evaluations"}
    assert sent == {}


def test_nodes_get_the_noise_that_keeps_to_an_epsilon(tmp_path):
    ours, grid = federated(tmp_path, ["privacy={epsilon: 3, clip: 0.5}", *SMALL])
    ours.step()
    sent = parse_settings(read_yaml("settings", requests_of(grid, "train")[0][0]["settings"])).privacy
    assert sent.epsilon is None
    sizes = prepare(load("digits", [*COMMON, *PRIVATE])).partition.sizes
    all_rounds = mechanism(int(sizes.min()), 2)._replace(noise_multiplier=sent.noise_multiplier)
    assert 2.9 < compute_epsilon([all_rounds], 1e-5) <= 3.0


def test_an_epsilon_for_nodes_of_unknown_sizes_is_refused(tmp_path):
    settings = ["partition.kind=nodes", "data.classes=[a, b]", "data={task: text, classes: [a, b]}", "privacy.epsilon=3"]
    with pytest.raises(InputError, match="numbers of samples are not known; give privacy.noise_multiplier"):
        of_nodes(tmp_path, settings)
