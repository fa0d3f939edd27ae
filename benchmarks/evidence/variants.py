"""The variants that are compared, which of them is tested, and the workloads on which that was chosen."""

from typing import NamedTuple

from fedadamw.algorithms import registry


class Variant(NamedTuple):
    """An algorithm with settings of its own."""

    algorithm: str
    settings: tuple[str, ...] = ()


BASE = "local-adamw"  # every difference is from it
CANDIDATE = "fedadamw memory=1"  # ours, chosen before any reported run
CHOSEN_ON = ("vit-0.1", "sst2-0.1")  # by earlier runs of three other seeds; the others test the choice
LOOKED_AT = ("swin-0.6", "resnet-0.1", "cola-0.8")  # of these, too, such runs were seen; they did not choose
MAIN = (BASE, "fedadamw", CANDIDATE)
RIVALS = (  # other settings of ours, on the workloads that choose; one that is better there can be tested next
    "fedadamw memory=1 align=agreement",
    "fedadamw memory=1 align=cautious",
    "fedadamw memory=1 align=bounded",
)
VARIANTS = {
    BASE: Variant("local-adamw"),
    "fedadamw": Variant("fedadamw"),
    CANDIDATE: Variant("fedadamw", ("algorithm.memory=1",)),
    **{name: Variant("fedadamw", ("algorithm.memory=1", f"algorithm.{name.split()[-1]}")) for name in RIVALS},
    "fedadamw share=none": Variant("fedadamw", ("algorithm.share=none",)),
    "fedavg": Variant("fedavg"),
    "fedmuon": Variant("fedmuon"),
    "fedlion": Variant("fedlion"),
    "diloco": Variant("diloco"),
    "muloco": Variant("muloco"),
}


def is_known(name: str) -> bool:
    """Whether this version has the variant's algorithm."""
    return VARIANTS[name].algorithm in registry.ALGORITHMS
