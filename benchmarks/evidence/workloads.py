"""The workloads: what is learned, for how long, and the learning rates that are tried first.

Each run takes one to three minutes on one core, of the long ones five to eight. Lengths are such that scores lie well
above chance and below what the model can reach. A grid of learning rates grows by rungs of the ladder while its best is
at an end of it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

ADAPTIVE = "adaptive"  # the grid of every algorithm that has none of its own
RUNGS = tuple(float(f"{first}e{power}") for power in range(-5, 1) for first in (1, 3))  # 1e-5, 3e-5, ... 3
GLUE = ("training.clients_per_round=10", "training.batch_size=8")


class Workload(NamedTuple):
    """What all runs of a comparison have in common."""

    name: str
    title: str  # as pages call it
    recipe: str
    settings: tuple[str, ...]  # beside the recipe's
    rates: Mapping[str, tuple[float, ...]]  # algorithm, or ADAPTIVE -> learning rates that are tried first
    data: str | None  # folder in the folder of data; None: comes with a package
    run_s: float  # seconds of a run on one core, until one was measured
    others: tuple[str, ...]  # variants that are compared beside the main ones
    trials: tuple[str, ...]  # settings of the trials of learning rates: the share of training data that is held out
    long: bool = False  # comes last


IMAGE_RATES = {ADAPTIVE: (3e-4, 1e-3), "fedavg": (0.1, 0.3), "fedmuon": (3e-3, 1e-2), "muloco": (3e-3, 1e-2)}
SWIN_RATES = {**IMAGE_RATES, ADAPTIVE: (1e-4, 3e-4), "fedavg": (0.03, 0.1), "fedmuon": (1e-3, 3e-3)}
TEXT_RATES = {ADAPTIVE: (1e-3, 3e-3), "fedavg": (0.1, 0.3), "fedmuon": (1e-3, 3e-3), "muloco": (1e-3, 3e-3)}
MANY = ("fedavg", "fedmuon", "fedlion", "diloco", "muloco", "fedadamw share=none")
SOME = ("fedavg", "fedmuon", "diloco")


def _images(model: str, concentration: float, every: int, run_s: float, others: tuple[str, ...] = ()) -> Workload:
    """A comparison on CIFAR-10: rounds and clients are the recipe's."""
    title = {"vit": "ViT", "resnet": "ResNet", "swin": "Swin"}[model]
    rates = SWIN_RATES if model == "swin" else IMAGE_RATES
    settings = (f"training.evaluate_every={every}",)
    return Workload(
        f"{model}-{concentration:g}",
        f"{title}, CIFAR-10, Dirichlet {concentration:g}",
        f"small/cifar10-{model}-dir{concentration:g}",
        settings,
        MappingProxyType(rates),
        "cifar10",
        run_s,
        others,
        ("data.validation=0.04",),  # 2,000 images
    )


def _texts(
    task: str, title: str, concentration: float, length: tuple[str, ...], run_s: float, others: tuple[str, ...] = ()
) -> Workload:
    """A comparison of MiniLM with LoRA on a task of GLUE, with ten of the twenty clients in a round."""
    held_out = {"sst2": 0.015, "cola": 0.1}[task]  # about 1,000 texts
    return Workload(
        f"{task}-{concentration:g}",
        f"MiniLM with LoRA, {title}, Dirichlet {concentration:g}",
        f"small/{task}-minilm-lora",
        (*GLUE, f"partition.concentration={concentration:g}", *length),
        MappingProxyType(TEXT_RATES),
        f"glue-{task}",
        run_s,
        others,
        (f"data.validation={held_out:g}", "training.evaluate_every=50"),  # after the last round
    )


DIGITS = Workload(
    "digits",
    "small ViT, digits, Dirichlet 0.3",
    "digits",
    ("training.rounds=30", "training.evaluate_every=1"),
    MappingProxyType(IMAGE_RATES),
    None,
    35,
    MANY,
    ("data.validation=0.25",),  # 359 digits
)
SMOLLM2 = Workload(
    "smollm2-0.1",
    "SmolLM2-135M with LoRA, SST-2, Dirichlet 0.1",
    "small/instruct-smollm2",
    ("data.config=null", "model.dtype=float32", "data.answers=200"),
    MappingProxyType(TEXT_RATES),
    "glue-sst2",
    320,
    (),
    ("data.validation=0.003",),  # 202 questions
    long=True,
)
SST2 = ("training.rounds=10", "training.steps=10", "training.evaluate_every=2")
SHORT = (
    _images("vit", 0.1, 3, 100, MANY),
    _texts("sst2", "SST-2", 0.1, SST2, 150, SOME),
    _images("resnet", 0.6, 2, 75, SOME),
    _images("swin", 0.6, 2, 110),
    _images("vit", 0.6, 3, 100),
    _images("resnet", 0.1, 2, 75),
    _images("swin", 0.1, 2, 110),
    DIGITS,
    _texts("sst2", "SST-2", 0.8, SST2, 150),
)
LONG_COLA = _texts(
    "cola", "CoLA", 0.8, ("training.rounds=40", "training.steps=10", "training.evaluate_every=4"), 480
)._replace(rates=MappingProxyType({ADAPTIVE: (3e-4, 1e-3)}), long=True)
LONG_VIT = SHORT[0]._replace(
    name="vit-0.1-240",
    title="ViT, CIFAR-10, Dirichlet 0.1, 240 rounds",
    settings=("training.evaluate_every=8", "training.rounds=240"),
    run_s=410,
    others=("fedmuon", "diloco"),
    long=True,
)
WORKLOADS = {workload.name: workload for workload in (*SHORT, LONG_VIT, SMOLLM2, LONG_COLA)}


def first_rates(workload: Workload, algorithm: str) -> tuple[float, ...]:
    """Return the learning rates that are tried first for an algorithm."""
    return workload.rates.get(algorithm, workload.rates[ADAPTIVE])
