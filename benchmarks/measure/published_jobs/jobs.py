"""The jobs whose times other frameworks published, with their settings, and where these are from.

What differs from theirs: they draw a round's clients with replacement (pfl) or otherwise at random, ours without; FLUTE
transposes the images; and of course the random numbers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from benchmarks.measure.published_jobs import cifar10, femnist
from benchmarks.measure.published_jobs.data import Data
from benchmarks.measure.published_jobs.models import FluteCNN, pfl_cnn


class Job(NamedTuple):
    """A job as its authors set it."""

    title: str
    sources: tuple[str, ...]
    load: Callable[[str], Data]
    model: Callable[[], nn.Module]
    rounds: int
    clients_per_round: int
    batch_size: int
    lr: float
    weighting: str
    evaluate_every: int
    evaluate_batch: int  # held-out samples at once; changes no number
    epochs: int = 1

    @property
    def settings(self) -> dict[str, Any]:
        """What `simulate` takes by name, for their FedAvg."""
        names = ("rounds", "clients_per_round", "batch_size", "lr", "epochs")
        return {name: getattr(self, name) for name in names}


PFL = "https://github.com/apple/pfl-research/blob/2c77da1b23441af78a0d971e7d7816f6757d722c/benchmarks"
FLUTE = "https://github.com/microsoft/msrflute/blob/405ac0960620d4452d5b8b38d91482dd19eb7b14/experiments/cv_cnn_femnist"
OF_PFL = (
    f"{PFL}/image_classification/configs/baseline.yaml",
    f"{PFL}/model/pytorch/cnn.py",
    f"{PFL}/dataset/cifar10/numpy.py",
)

CIFAR10 = Job(
    "pfl-research: CIFAR-10, IID",
    sources=OF_PFL,
    load=partial(cifar10.load, concentration=None),
    model=pfl_cnn,
    rounds=1500,
    clients_per_round=50,
    batch_size=10,
    lr=0.1,
    weighting="uniform",
    evaluate_every=10,
    evaluate_batch=10_000,
)
JOBS = {
    "cifar10-iid": CIFAR10,
    "cifar10-dirichlet": CIFAR10._replace(
        title="pfl-research: CIFAR-10, Dirichlet 0.1",
        load=partial(cifar10.load, concentration=0.1),
        rounds=3000,
    ),
    "femnist": Job(
        "FLUTE: FEMNIST",
        sources=(f"{FLUTE}/config.yaml", f"{FLUTE}/model.py", f"{FLUTE}/README.md"),
        load=femnist.load,
        model=FluteCNN,
        rounds=800,
        clients_per_round=10,
        batch_size=20,
        lr=0.1,
        weighting="samples",
        evaluate_every=50,
        evaluate_batch=10_000,  # theirs is 20
    ),
}

ALGORITHMS: dict[str, dict[str, Any]] = {
    # theirs: SGD without weight decay or clipping at a constant learning rate, and a plain mean
    "fedavg": {
        "algorithm_settings": {"weight_decay": 0.0},
        "schedule": "constant",
        "settings": {"training.clip": None},
    },
    # with its defaults, not tuned on these jobs
    "fedadamw": {"lr": 3e-4, "schedule": "cosine", "settings": {}},
}
