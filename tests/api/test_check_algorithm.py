"""What authors check their algorithms with: it accepts those of the package and finds what breaks an engine."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import pytest
import torch
from support.cases import CASES

import fedadamw
from fedadamw.algorithms.fedadam import FedAdam
from fedadamw.algorithms.fedavg import FedAvg, Local
from fedadamw.algorithms.registry import BUILT_IN
from fedadamw.api.check_algorithm import make_network
from fedadamw.validation import InputError

FAST = ("fedadamw-mean-v", "scaffold", "fedmuon")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in CASES])
def test_it_accepts_the_algorithms_of_the_package_and_counts_what_travels(name):
    case = CASES[name]
    traffic = fedadamw.check_algorithm(BUILT_IN[case.name], case.settings, lr=case.lr)
    matrices = [p.shape for p in make_network(4, 8, 3).parameters() if p.dim() == 2]  # no name says which is a head
    counts = {"M": sum(r * c for r, c in matrices), "T": sum(map(sum, matrices)), **traffic._asdict()}
    assert traffic.up == eval(case.up, counts)
    assert traffic.down == eval(case.down, counts)


@dataclass(frozen=True)
class InPlace(FedAvg):
    def client_step(self, local, down, g, lr):
        return Local(local.y.sub_(lr * g))


@dataclass(frozen=True)
class OverAllClients(FedAvg):
    elementwise: ClassVar = False

    def client_step(self, local, down, g, lr):
        return Local(local.y - lr * g / g.norm())


@dataclass(frozen=True)
class NotElementwise(FedAvg):
    def client_step(self, local, down, g, lr):
        return Local(local.y - lr * g / g.norm(dim=-1, keepdim=True))


@dataclass(frozen=True)
class Random(FedAvg):
    elementwise: ClassVar = False

    def client_step(self, local, down, g, lr):
        return Local(local.y - lr * (g + 0.01 * torch.randn_like(g)))


@dataclass(frozen=True)
class NotTheMean(FedAdam):
    adds_mean: ClassVar = True


class Backwards(NamedTuple):
    k: torch.Tensor
    delta: torch.Tensor


@dataclass(frozen=True)
class KFirst(FedAvg):
    def client_finish(self, local, down, lr):
        return Backwards(lr[None], local.y - down.x), ()


@dataclass(frozen=True)
class Explodes(FedAvg):
    def client_step(self, local, down, g, lr):
        return Local(local.y / (local.y - local.y))


@dataclass(frozen=True)
class NoOwnModel(FedAvg):
    own_model: ClassVar = "v"


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (InPlace, "^client_step modifies its arguments"),
        (OverAllClients, "^a run with stacked clients differs by"),
        (NotElementwise, "^elementwise is True, but a step in pieces differs by"),
        (Random, "^client_step returns something else for the same arguments"),
        (NotTheMean, "^adds_mean is True, but x after server_update differs by"),
        (KFirst, "^the first field of Backwards must be delta"),
        (Explodes, "^the upload is not finite after three steps"),
        (NoOwnModel, "^own_model is 'v', but the memory has no such field"),
    ],
)
def test_it_finds_what_breaks_an_engine(algorithm, message):
    with pytest.raises(AssertionError, match=message):
        fedadamw.check_algorithm(algorithm)


def test_wrong_settings_and_classes_are_input_errors():
    with pytest.raises(InputError, match="is no class derived from Algorithm"):
        fedadamw.check_algorithm(dict)
    with pytest.raises(InputError, match="weight_decay=-1.0 must"):
        fedadamw.check_algorithm(FedAvg, {"weight_decay": -1.0})
    with pytest.raises(InputError, match="setting='weight_dcay' is unknown .did you mean 'weight_decay'"):
        fedadamw.check_algorithm(FedAvg, {"weight_dcay": 1.0})
