"""Algorithms of other packages and of scripts: found, imported when used, checked, refused in one line."""

import sys
from dataclasses import dataclass

import pytest
import torch
from support.packages import FEDAVGX
from support.runs import simulate
from support.sequences import attention_model, unequal_clients

import fedadamw
from fedadamw.algorithm import Algorithm
from fedadamw.algorithms import registry
from fedadamw.algorithms.fedavg import FedAvg
from fedadamw.algorithms.fedlamb import FedLAMB
from fedadamw.blocks.blocks import Blocks
from fedadamw.settings.load import load
from fedadamw.validation import InputError


@dataclass(frozen=True, kw_only=True)
class Mine(FedAvg):
    speed: float = 1.0


@dataclass(frozen=True, kw_only=True)
class WithBlocks(FedLAMB):
    pass


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """What `register` keeps, forgotten after the test."""
    monkeypatch.setattr(registry, "REGISTERED", {})
    return registry.REGISTERED


def refusal(what, *arguments, **keywords):
    with pytest.raises(InputError) as caught:
        what(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_package_is_imported_when_its_algorithm_is_used(put_package):
    put_package("fed-avgx", {"fedavgx": "fed_avgx:FedAvgX"})
    assert "fedavgx" in registry.ALGORITHMS
    assert list(registry.ALGORITHMS) == [*registry.BUILT_IN, "fedavgx"]
    assert len(registry.ALGORITHMS) == len(registry.BUILT_IN) + 1
    load("digits", ["algorithm=fedavg"])
    assert "fedavgx" in refusal(load, "digits", ["algorithm=fedavgy"])
    assert "fed_avgx" not in sys.modules
    assert load("digits", ["algorithm=fedavgx", "algorithm.speed=2"]).algorithm["speed"] == 2.0
    assert "fed_avgx" in sys.modules
    assert str(registry.find_package("fedavgx")) == "fed-avgx 0.1"
    assert registry.find_package("fedavg") is None


def test_its_settings_are_checked_like_those_of_built_in_ones(put_package):
    put_package("fed-avgx", {"fedavgx": "fed_avgx:FedAvgX"})

    def refused(setting):
        return refusal(load, "digits", ["algorithm=fedavgx", setting])

    assert refused("algorithm.sped=2").startswith("algorithm.sped is unknown (did you mean 'speed'?); fedavgx has")
    assert refused("algorithm.speed=fast").startswith("algorithm.speed='fast': input should be a valid number")
    assert refused("algorithm.speed=-1") == "algorithm: speed=-1.0 must not be negative"
    assert "did you mean 'algorithm.speed'" in refused("training.speed=1")
    assert "did you mean 'fedavgx'" in refusal(load, "digits", ["algorithm=fedavgxx"])


def test_a_recipe_may_have_settings_for_it(put_package, tmp_path):
    put_package("fed-avgx", {"fedavgx": "fed_avgx:FedAvgX"})
    (tmp_path / "mine.yaml").write_text("training: {steps: 2}\nalgorithms: {fedavgx: {lr: 0.5, speed: 3.0}}\n")
    experiment = load(str(tmp_path / "mine.yaml"), ["algorithm=fedavgx"])
    assert (experiment.training.lr, experiment.algorithm["speed"]) == (0.5, 3.0)
    assert load(str(tmp_path / "mine.yaml")).algorithm_name == "fedadamw"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nowhere_to_be_found", "broken:FedAvgX cannot be imported (ModuleNotFoundError: No module named 'now"),
        ("raise SystemExit(3)", "broken:FedAvgX cannot be imported (SystemExit: 3)"),
        ("", "broken:FedAvgX cannot be imported (AttributeError: module 'broken' has no attribute 'FedAvgX')"),
        ("FedAvgX = 3", "3 is no class derived from Algorithm"),
        ("class FedAvgX: pass", "<class 'broken.FedAvgX'> is no class derived from Algorithm"),
        (FEDAVGX.replace("@dataclass(frozen=True, kw_only=True)", ""), "FedAvgX is no @dataclass(frozen=True)"),
        (FEDAVGX.replace("speed: float = 1.0", "speed: float"), "FedAvgX.speed has no default"),
        (FEDAVGX.replace("speed: float = 1.0", "speed: float = 'a'"), "has a wrong default: algorithm.speed='a'"),
        (FEDAVGX.replace("speed: float = 1.0", "speed: float = -1.0"), "cannot be made with its defaults (speed=-1.0"),
        (FEDAVGX.replace("speed: float = 1.0", "speed: object = object"), "is no number, word, true or false, None"),
        (FEDAVGX.replace("speed: float", "speed: 'Nowhere'"), "types cannot be read (name 'Nowhere' is not defined)"),
        (FEDAVGX.replace("speed: float", "lr: float = 0.1; speed: float"), "FedAvgX.lr needs another name"),
        (FEDAVGX.replace('"speed": (0.5', '"sped": (0.5'), "FedAvgX.tuning has sped, which is no setting; use of lr, "),
    ],
)  # fmt: skip
def test_a_broken_package_is_one_line_and_stops_no_other(put_package, source, reason):
    put_package("broken", {"broken": "broken:FedAvgX"}, source, "2.0")
    load("digits", ["algorithm=fedavg"])
    message = refusal(load, "digits", ["algorithm=broken"])
    assert message.startswith("package broken 2.0 has no usable algorithm 'broken': ")
    assert reason in message
    assert "broken" not in refusal(load, "digits", ["algorithm=fedavg", "algorithm.alpha=1"])


def test_a_class_that_lacks_a_method_is_refused():
    @dataclass(frozen=True)
    class Half(Algorithm):
        def broadcast(self, server):
            return server

    assert "lacks client_finish, client_start, client_step, server_init" in refusal(registry.register, "half", Half)


def test_two_packages_with_one_name_are_both_named(put_package):
    put_package("one", {"fedavgx": "one:FedAvgX"})
    put_package("two", {"fedavgx": "two:FedAvgX"}, version="3.1")
    load("digits", ["algorithm=fedavg"])
    message = refusal(load, "digits", ["algorithm=fedavgx"])
    assert "two packages" in message
    assert "one 0.1" in message
    assert "two 3.1" in message


def test_a_package_cannot_take_a_built_in_name(put_package):
    put_package("thief", {"fedavg": "thief:FedAvgX"})
    assert "'fedavg' is fedadamw's own, but package thief 0.1" in refusal(load, "digits", ["algorithm=fedavg"])
    assert load("digits").algorithm_name == "fedadamw"
    assert refusal(load, "digits", ["algorithm.mu=1"]).startswith("algorithm.mu is unknown")


def test_register_makes_a_class_known_in_this_process(task):
    fedadamw.register("mine", Mine)
    fedadamw.register("mine", Mine)
    fedadamw.register("with-blocks", WithBlocks)
    assert load("digits", ["algorithm=mine", "algorithm.speed=2"]).algorithm == {
        "name": "mine",
        "weight_decay": 0.001,
        "speed": 2.0,
    }
    assert not registry.needs_blocks("mine")
    assert registry.needs_blocks("with-blocks")
    made = registry.make("with-blocks", registry.settings_of("with-blocks"), Blocks.of(attention_model()))
    sim = simulate(attention_model(), task, unequal_clients(task), algorithm=made, rounds=1)
    before = sim.state.server.x.clone()
    sim.step()
    assert not torch.equal(sim.state.server.x, before)


def test_register_refuses_names_and_classes(put_package):
    put_package("fed-avgx", {"fedavgx": "fed_avgx:FedAvgX"})
    fedadamw.register("mine", Mine)
    assert "fedadamw's own" in refusal(fedadamw.register, "fedavg", Mine)
    assert "fedadamw's own" in refusal(fedadamw.register, "fedavg", Mine, replace=True)
    for name in ("", "a/b", "../a", "a,b", "a b", "a" * 51, Mine):
        assert "use up to 50 letters" in refusal(fedadamw.register, name, Mine)
    assert "no class derived from Algorithm" in refusal(fedadamw.register, "mine", Mine())
    assert "'mine' is registered already; replace=True" in refusal(fedadamw.register, "mine", WithBlocks)
    assert "is of package fed-avgx 0.1 already" in refusal(fedadamw.register, "fedavgx", Mine)
    assert registry.ALGORITHMS["mine"] is Mine
    fedadamw.register("mine", WithBlocks, replace=True)
    assert registry.ALGORITHMS["mine"] is WithBlocks
    fedadamw.register("fedavgx", Mine, replace=True)
    assert registry.ALGORITHMS["fedavgx"] is Mine


def test_registering_what_a_package_names_changes_nothing(put_package, registered):
    put_package("fed-avgx", {"fedavgx": "fed_avgx:FedAvgX"})
    fedadamw.register("fedavgx", registry.ALGORITHMS["fedavgx"])
    assert registered == {}
