"""THE table of algorithms: a new one is a row here, and every shared property is then tested for it."""

from typing import NamedTuple

import reference

from fedadamw.algorithms.fedadamw import SHARES


class Case(NamedTuple):
    name: str  # in the registry
    settings: dict
    twin: object  # its literal loop in reference.py
    lr: float  # that converges on the small problems of the tests
    up: str  # documented count of numbers a client sends, in d and B
    down: str


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
    "local-adamw": Case("local-adamw", {}, reference.local_adamw, 0.02, "d", "d"),
    "fedavg": Case("fedavg", {}, reference.fedavg, 0.1, "d", "d"),
}
assert {case.settings["share"] for case in CASES.values() if "share" in case.settings} == set(SHARES)
