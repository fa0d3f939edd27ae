"""Nodes with differential privacy of samples: what they demand, spend and send."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
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
from fedadamw.flower.protocol import ARRAYS, REQUEST
from fedadamw.flower.server.check_upload import check_metrics
from fedadamw.flower.server.rounds import QuorumError
from fedadamw.flower.wire import RefusedError
from fedadamw.io.yaml_text import read_yaml
from fedadamw.prepare.simulation import check_settings
from fedadamw.privacy.accountant import Mechanism, compute_epsilon
from fedadamw.randomness import Seeded
from fedadamw.settings.load import load, parse_settings
from fedadamw.validation import InputError

pytestmark = pytest.mark.usefixtures("restore_threads")

SMALL = ["data.max_train=120", "data.max_test=20"]  # 40 samples a client
NOISE = "privacy.noise_multiplier=1.5"
PRIVATE = [NOISE, "privacy.clip=0.5", *SMALL]
EVERYONE = ["training.clients_per_round=3"]
SEED = 0  # that of the experiment
BUDGET = "its own privacy budget does not cover another training"


def of_trainings(count, noise=1.5):
    """Return what so many trainings of a client are, of three steps each on batches of 20."""
    return Mechanism(noise, 20 / 40, 3 * count)


def private(tmp_path, settings=(), entropy=None, **config):
    """Return a federation with privacy of samples, and its grid; each node has a state folder of its own.

    config: `_1={...}` is added to that of node 1, `all={...}` to everyone's.
    """
    grid = LocalGrid(3, tmp_path / "state", entropy=entropy)
    for i in range(3):
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


def requests_of(grid, ask):
    """Return the requests of a kind that were sent, with their arrays."""
    sent = [(dict(m.content.config_records[REQUEST]), m.content.array_records) for m in grid.waiting.values()]
    return [(r, dict(a[ARRAYS]) if ARRAYS in a else {}) for r, a in sent if r["ask"] == ask]


def answer(asked, folder, worker=None, config=None, **changed):
    """Return the answer of a node with this state folder to a request with its arrays."""
    request, arrays = asked
    told = {"partition-id": 0, "state-dir": str(folder), **(config or {})}
    request = {**request, "came": time.time(), "seconds": 600.0, "sent": time.time(), "config": told, **changed}
    return (worker or Worker()).answer(request, arrays)


def with_settings(asked, change):
    """Return a request whose settings `change` has changed."""
    request, arrays = asked
    raw = read_yaml("settings", request["settings"])
    change(raw)
    return {**request, "settings": json.dumps(raw)}, arrays


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """The requests of the first round of a federation, by kind, and the numbers and arrays of its answers."""
    ours, grid = private(tmp_path_factory.mktemp("asked"), EVERYONE)
    told = []
    grid.lies = dict.fromkeys(grid.configs, lambda arrays, numbers: told.append((set(arrays), dict(numbers))))
    ours.clients.federation = ours.clients.federation.model_copy(update={"quorum": 3})
    assert ours.step().federation == {"asked": 3, "answered": 3}
    events = read_events(grid_folder(ours), "joined")
    return {"hello": requests_of(grid, "hello")[0], "train": requests_of(grid, "train")[0], "told": (told, events)}


def grid_folder(ours):
    return ours.clients.events.path.parent.parent


def charges(state):
    return Ledger.of(state).charges()


@pytest.mark.parametrize(
    "name", ["fedadamw-mean-v", *(pytest.param(name, marks=pytest.mark.slow) for name in ("scaffold", "fedavg"))]
)
def test_nodes_with_seeded_noise_give_the_loops_numbers(tmp_path, name):
    case = CASES[name]
    settings = [f"algorithm={json.dumps({'name': case.name, **case.settings})}", "training.upload=int8"]
    settings += ["training.rounds=3", "training.evaluate_every=3", f"training.lr={case.lr}"]
    ours, _ = private(tmp_path, settings, entropy=Seeded(SEED))
    theirs = simulated([*PRIVATE, *settings])
    for record, expected in zip(ours.rounds(), theirs.rounds(), strict=True):
        assert record.federation == {"asked": 2, "answered": 2}  # no upload is too long: noise has the same norm
        assert record.test_metrics == expected.test_metrics
    assert_same(ours, theirs)
    assert sum(len(charges(tmp_path / f"state-{node}")) for node in range(3)) == 6


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
    experiment = load("digits", [*COMMON, *PRIVATE, *settings])
    request = {"settings": experiment.to_yaml(), "about": "{}", "federation": "run"}
    for ask in ("hello", "train", "evaluate"):
        numbers, arrays = answer((request, {}), tmp_path, config=demand, ask=ask)
        assert told in numbers["declined"]
        assert "\n" not in numbers["declined"]
        assert arrays == {}
    assert not re.search(r"\b2\b|privacy-noise", numbers["declined"])  # what it demands is in its own log
    assert ("privacy-noise=2" in capsys.readouterr().err) == (kind == "less noise")
    assert not Ledger.of(tmp_path).begun


def test_a_node_that_demands_as_much_as_the_run_has_takes_part(asked, tmp_path):
    budget = {"privacy-epsilon": 100, "privacy-noise": 1.5, "privacy-unit": "sample"}
    assert answer(asked["hello"], tmp_path, config=budget)[0].keys() == {"client", "layout"}
    assert not Ledger.of(tmp_path).begun


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


TRICKS = {
    "training.clip=1.0": "training.clip",
    "federation.sample_counts=true": "federation.sample_counts",
    "training.weighting=samples": "training.weighting",
    "training.epochs=1": "training.epochs",
    "training.client_evaluation=1": "evaluations",
}


def test_a_node_trusts_no_settings_of_the_server(tmp_path):
    for trick, told in TRICKS.items():
        experiment = load("digits", [*COMMON, *PRIVATE, "partition.held_out=0.2", trick])
        request = {"settings": experiment.to_yaml(), "about": "{}", "federation": "run"}
        assert told in answer((request, {}), tmp_path, ask="hello")[0]["declined"], trick


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


def test_evaluation_over_nodes_is_refused_with_privacy():
    for unit in ("sample", "client"):
        more = ["partition.held_out=0.2", "training.client_evaluation=1", f"privacy.unit={unit}"]
        with pytest.raises(InputError, match="training.client_evaluation=1: no epsilon counts what the scores"):
            check_settings(load("digits", [*COMMON, *PRIVATE, *more]), remote=True)


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


def of_images(tmp_path, *more, **classes):
    """Return a federation whose nodes have images of their own, of classes a and b unless `_1=("a", "c")` says else."""
    grid = LocalGrid(3, tmp_path / "state")
    for i in range(3):
        for name in classes.get(f"_{i}", ("a", "b")):
            folder = tmp_path / f"data-{i}" / name
            folder.mkdir(parents=True)
            for j in range(4):
                pixels = np.random.default_rng([i, j]).integers(0, 255, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{j}.png")
        grid.configs[100 + i] |= {"data": str(tmp_path / f"data-{i}"), "state-dir": str(tmp_path / f"state-{i}")}
    data = "data={task: image, classes: [a, b], image_size: 8, image_mode: grey}"
    return federated(tmp_path, [data, "partition.kind=nodes", *EVERYONE, *more], grid)


MOMENTS = ["data.mean=[0.5]", "data.std=[0.3]"]


def test_an_epsilon_for_nodes_of_unknown_sizes_is_refused(tmp_path):
    with pytest.raises(InputError, match="numbers of samples are not known; give privacy.noise_multiplier"):
        of_images(tmp_path, *MOMENTS, "privacy.epsilon=3")


def test_the_server_asks_for_no_sums_of_pixels(tmp_path):
    with pytest.raises(InputError, match="data.mean is not set, so that nodes would send sums of their pixels"):
        of_images(tmp_path, NOISE)


def test_a_node_tells_no_sums_of_pixels_whoever_asks(tmp_path):
    ours, grid = of_images(tmp_path, *MOMENTS, NOISE)
    meet(ours, 3)
    request, _ = requests_of(grid, "hello")[0]
    about = {key: value for key, value in json.loads(request["about"]).items() if key not in ("mean", "std")}
    asked = with_settings((request, {}), lambda raw: raw["data"].update(mean=None, std=None))
    config = {"data": grid.configs[100]["data"]}
    numbers, arrays = answer(asked, tmp_path / "state", config=config, about=json.dumps(about))
    assert numbers == {"declined": "it tells no sums of its pixels: give data.mean and data.std"}
    assert arrays == {}


def test_a_node_names_none_of_its_classes(tmp_path, capsys):
    ours, _ = of_images(tmp_path, *MOMENTS, NOISE, "federation.wait_for=2", _1=("a", "SECRET"))
    meet(ours, 2)
    assert ours.step().federation == {"asked": 2, "answered": 2}
    (event,) = read_events(tmp_path, "stranger")
    assert event["reason"] == "other-data"
    assert event["detail"] == "client 1: its data do not fit the run, or cannot be read; its log says more"
    assert "SECRET" in capsys.readouterr().err
    assert "SECRET" not in (tmp_path / "run/events.jsonl").read_text()
    assert charges(tmp_path / "state-1") == []
    assert [charge.rate for charge in charges(tmp_path / "state-0")] == [1.0]  # 8 samples, batches of 20
