"""THE table of algorithms: a new one is a row here, and every shared property is then tested for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import pytest

from fedadamw.algorithms import registry
from fedadamw.algorithms.fedadamw import SHARES
from fedadamw.algorithms.fedavg import FedAvg, Local
from support import reference, reference_outer, reference_sgd


class Case(NamedTuple):
    name: str  # in the registry
    settings: dict
    twin: object  # its literal loop in reference.py or beside it
    lr: float  # that converges on the small problems of the tests
    up: str  # documented count of numbers a client sends, in d and B
    down: str
    training: Mapping = MappingProxyType({})  # settings of the section training


CASES = {
    **{
        f"fedadamw-{share}": Case("fedadamw", {"share": share}, reference.fedadamw, lr, up, down)
        for share, lr, up, down in (
            ("none", 0.02, "d + 1", "2*d + 1"),
            # fresh v, carried m: steps of m/|g| where g is near 0, so only tiny ones keep digits to compare
            ("m", 1e-4, "2*d + 1", "3*d + 1"),
            ("v", 0.02, "2*d + 1", "3*d + 1"),
            ("vm", 0.02, "3*d + 1", "4*d + 1"),
            ("mean-v", 0.02, "d + B + 1", "2*d + B + 1"),
        )
    },
    **{
        f"fedadamw-memory-{memory:g}": Case(
            "fedadamw", {"share": share, "memory": memory}, reference.fedadamw, 0.02, up, down
        )
        for share, memory, up, down in (
            ("mean-v", 1.0, "d + B + 1", "2*d + B + 1"),
            ("vm", 2.5, "3*d + 1", "4*d + 1"),
        )
    },
    **{
        f"fedadamw-{align}": Case("fedadamw", {"align": align, **more}, reference.fedadamw, 0.02, up, "2*d + B + 1")
        for align, more, up in (
            ("agreement", {}, "d + B + 2"),
            ("cautious", {}, "d + B + 1"),
            ("bounded", {"alpha": 1.0}, "d + B + 1"),  # so that it is
        )
    },
    "local-adamw": Case("local-adamw", {}, reference.local_adamw, 0.02, "d", "d"),
    "local-adam": Case("local-adam", {}, reference.local_adam, 0.02, "d", "d"),
    "fedavg": Case("fedavg", {}, reference_sgd.fedavg, 0.1, "d", "d"),
    "fedprox": Case("fedprox", {"mu": 0.1}, reference_sgd.fedprox, 0.1, "d", "d"),
    "ditto": Case("ditto", {"pull": 0.5}, reference_sgd.ditto, 0.1, "d", "d"),
    "scaffold": Case("scaffold", {}, reference_sgd.scaffold, 0.1, "2*d", "2*d"),
    "fedcm": Case("fedcm", {"a": 0.3}, reference_sgd.fedcm, 0.1, "d + 1", "2*d"),
    "fedadam": Case("fedadam", {}, reference_sgd.fedadam, 0.1, "d", "d"),
    "fedexp": Case("fedexp", {}, reference_sgd.fedexp, 0.1, "d + 1", "d"),
    "fadamgc": Case("fadamgc", {}, reference.fadamgc, 0.02, "2*d", "2*d"),
    "fedlada": Case("fedlada", {"a": 0.3}, reference.fedlada, 0.02, "2*d + 1", "3*d"),
    "fedmuon": Case("fedmuon", {}, reference.fedmuon, 0.02, "d + M + 1", "2*d + M"),
    "fedmuon-rank": Case("fedmuon", {"rank": 1}, reference.fedmuon, 0.02, "d + T + 1", "2*d + 2*T"),
    "fedlion": Case("fedlion", {}, reference.fedlion, 0.01, "d + 1", "2*d"),
    "fedlamb": Case("fedlamb", {}, reference.fedlamb, 0.02, "d + B + 1", "2*d + B + 1"),
    "diloco": Case("diloco", {}, reference_outer.diloco, 0.02, "d", "d"),
    "diloco-reset": Case(
        "diloco", {"moments": "reset", "outer_lr": 0.5, "nesterov": False}, reference_outer.diloco, 0.02, "d", "d"
    ),
    "muloco": Case("muloco", {}, reference_outer.muloco, 0.02, "d", "d"),
}


@dataclass(frozen=True, kw_only=True)
class Elsewhere(FedAvg):
    """FedAvg whose clients do not start at x, which an algorithm may do."""

    def client_start(self, down, memory):
        return Local(0.9 * down.x)


# what every engine and the wire come to the same numbers of
EVERYWHERE = {
    **CASES,
    "elsewhere": Case("elsewhere", {}, reference_sgd.elsewhere, 0.1, "d", "d"),
    "fedadamw-outer": CASES["fedadamw-mean-v"]._replace(
        twin=partial(reference.fedadamw, outer=(0.5, 0.8, True)),
        training={"outer": {"lr": 0.5, "momentum": 0.8, "nesterov": True}},
    ),
}


VARIANTS = {
    "fadamgc",
    "fedadamw-agreement",
    "diloco-reset",
    "fedadamw-bounded",
    "fedadamw-cautious",
    "fedadamw-memory-2.5",
    "fedadamw-none",
    "fedadamw-m",
    "fedadamw-v",
    "fedadamw-vm",
    "fedmuon",
    "local-adam",
    "fedprox",
}


def rows(table):
    """Names of the table's rows, for tests of seconds each: those near another row are left to `make test-all`."""
    names = list(table)
    return fast_first([name for name in names if name not in VARIANTS], VARIANTS & set(names))


def fast_first(fast, slow):
    """Parameters of a test, those in `slow` left to `make test-all`."""
    return [*fast, *(pytest.param(value, marks=pytest.mark.slow) for value in sorted(slow))]


def register(put=registry.register):
    """Make known by name what is no algorithm of the package."""
    put("elsewhere", Elsewhere)


assert {case.settings["share"] for case in CASES.values() if "share" in case.settings} == set(SHARES)
