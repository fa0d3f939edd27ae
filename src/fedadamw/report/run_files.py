"""Types of what a run folder holds: the lines of metrics.jsonl and clients.jsonl, and manifest.json."""

from typing import Any, Literal, TypedDict

from fedadamw.engine.diagnostics import Numbers
from fedadamw.engine.step import Kind
from fedadamw.prepare.start import StartFacts

MAX_CLIENTS = 200  # in partition.json: as many columns of the chart are wide enough to see


class _Record(TypedDict):
    round: int
    lr: float
    train_loss: float | None
    test_loss: float | None
    test_metrics: dict[str, float | None] | None
    clients: int
    rejected: int
    up_bytes: int
    down_bytes: int
    wall_s: float


class RecordDict(_Record, total=False):
    """A line of metrics.jsonl: an engine.record.Record as JSON, None for numbers that are not finite."""

    epsilon: float | None  # with differential privacy
    diagnostics: Numbers
    federation: dict[str, int]
    clip: float
    waited_s: float
    virtual_s: float  # with a virtual clock
    devices: dict[str, Any]
    clients_mean: float | None
    clients_weighted: float | None
    clients_std: float | None
    clients_worst_decile: float | None
    clients_metrics: dict[str, float | None]
    tuned: dict[str, Any]  # the five before, after personal.finetune


class LossesDict(TypedDict):
    """A line of clients.jsonl: who was sampled in a round, and the mean training loss of each over its local steps."""

    round: int
    clients: list[int]
    losses: list[float | None]  # None if the answer was not accepted, or is not finite, and with privacy


ScoresDict = dict[str, Any]
"""A line of client_scores.jsonl: `round`, and lists over the evaluated `clients`: `samples`, `loss`, each metric.

The main metric comes first after the loss. After personal.finetune the tuned models' follow, as `tuned_loss` and so on.
None for numbers that are not finite.
"""


class _Partition(TypedDict):
    clients: int
    fingerprint: str  # of what clients train on


class PartitionFacts(_Partition, total=False):
    """The partition of a run."""

    held_out: str  # fingerprint of the clients' own held-out samples, with partition.held_out


class _Model(TypedDict):
    layout: str  # fingerprint of the trainable tensors' names and shapes
    d: int  # trainable parameters


class ModelFacts(_Model, total=False):
    """The model of a run."""

    B: int  # blocks, if the algorithm uses them
    dtype: str  # of a frozen base in 16 bits; without it float32
    frozen: str  # digest of what is not trained, of a model from Python
    start: StartFacts  # the run whose model this one started from, if it did


class PrivacyFacts(TypedDict):
    """The noise of a run with differential privacy."""

    noise_multiplier: float  # as given, or as it was searched for


class _Manifest(TypedDict):
    versions: dict[str, str | None]  # of Python and packages; None if not installed
    commit: str | None
    seed: int
    device: str
    data: dict[str, Any]  # size and fingerprint of `train` and `test`, and what rebuilding the model needs
    folders: list[str]  # settings whose values were relative paths without ./, see prepare.paths.list_plain_folders
    partition: PartitionFacts
    model: ModelFacts


class Manifest(_Manifest, total=False):
    """manifest.json: what is needed to repeat a run, besides its settings."""

    privacy: PrivacyFacts
    counter: Literal["q"]  # how gradients of carried moments are counted, if steps are unequal; without it by mean K
    devices: str  # fingerprint of the simulated devices, see devices.fleet
    step: Kind  # how local steps are done; not with Flower's nodes, which choose for themselves
