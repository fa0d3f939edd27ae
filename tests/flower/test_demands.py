"""The privacy that a node demands, and the runs that it declines."""

import re

import pytest

pytest.importorskip("flwr", reason="Flower needs Python 3.11")
pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")

from support.federated import COMMON
from support.private_nodes import PRIVATE, answer

from fedadamw.flower.node.demands import Demands, read_demands
from fedadamw.flower.node.ledger import Ledger
from fedadamw.prepare.checks import check_settings
from fedadamw.settings.load import load
from fedadamw.validation import InputError

pytestmark = pytest.mark.usefixtures("restore_threads")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"privacy-epsilo": 3}, "privacy-epsilo is unknown; use privacy-unit, privacy-noise"),
        ({"privacy_epsilon": 3}, "privacy_epsilon is unknown; use privacy-unit, privacy-noise"),
        ({"Privacy-epsilon": 3}, "Privacy-epsilon is unknown"),
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
    request = {"settings": experiment.to_yaml(), "about": "{}", "federation": "run", "unequal_steps": False}
    for ask in ("hello", "train", "evaluate"):
        numbers, arrays = answer((request, {}), tmp_path, config=demand, ask=ask)
        assert told in numbers["declined"]
        assert "\n" not in numbers["declined"]
        assert arrays == {}
    assert not re.search(r"\b2\b|privacy-noise", numbers["declined"])  # what it demands is in its own log
    assert ("privacy-noise=2" in capsys.readouterr().err) == (kind == "less noise")
    assert not Ledger.of(tmp_path).begun


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
        request = {"settings": experiment.to_yaml(), "about": "{}", "federation": "run", "unequal_steps": False}
        assert told in answer((request, {}), tmp_path, ask="hello")[0]["declined"], trick


@pytest.mark.parametrize("unit", ["sample", "client"])
def test_evaluation_over_nodes_is_refused_with_privacy(unit):
    more = ["partition.held_out=0.2", "training.client_evaluation=1", f"privacy.unit={unit}"]
    more += ["federation.norm_factor=null", "training.weighting=uniform"]
    with pytest.raises(InputError, match=r"training.client_evaluation=1: no epsilon|set training.client_evaluation=0"):
        check_settings(load("digits", [*COMMON, *PRIVATE, *more]), remote=True)


def test_a_request_that_is_invalid_is_an_error_and_no_crash(tmp_path):
    for request in ({}, {"settings": 3}, {"settings": "[1]"}, {"settings": "privacy: 3"}, {"settings": "&a [*a"}):
        assert "error" in answer((request, {}), tmp_path, ask="hello")[0]
    assert "error" in answer(({}, {}), tmp_path, ask="hello", config={"privacy-unit": "sample"})[0]
