"""A whole run as one validated object."""

from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from fedadamw.settings.data import IMAGE, LANGUAGE, PYTHON, DataSettings
from fedadamw.settings.devices import DevicesSettings
from fedadamw.settings.federation import FederationSettings
from fedadamw.settings.lora import LoraSettings
from fedadamw.settings.model import ModelSettings
from fedadamw.settings.partition import PartitionSettings
from fedadamw.settings.personal import PersonalSettings
from fedadamw.settings.privacy import PrivacySettings
from fedadamw.settings.section import Section
from fedadamw.settings.training import TrainingSettings
from fedadamw.validation import check, shorten

AlgorithmValue = bool | int | float | str | None | tuple[bool | int | float | str, ...]

IMAGE_SETTINGS = (
    "data.image_column",
    "data.flip",
    "model.depth",
    "data.crop_padding",
    "data.image_size",
    "data.image_mode",
    "data.mean",
    "data.std",
    "data.on_bad",
)
TEXT_SETTINGS = (
    "data.text_column",
    "data.max_length",
    "model.tokenizer",
    "model.pad_token",
    "training.group_by_length",
)
LANGUAGE_SETTINGS = (
    "data.prompt_column",
    "data.response_column",
    "data.prompt",
    "data.response",
    "data.metrics",
    "data.choices",
    "data.packing",
)
PAIR_SETTINGS = ("data.text_pair_column",)


class Experiment(Section):
    """A whole run. `Experiment()` is much like the recipe `digits`, untuned."""

    seed: int = Field(default=0, ge=0, description="Seed of everything random. Change it to repeat a run.")
    device: str = Field(
        default="auto", description="auto, cpu, cuda, or one GPU of several: cuda:1. auto takes a GPU if there is one."
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="CPU threads of a process. Null: torch's choice. Set 1 for small models, whose steps gain nothing "
        "from more.",
    )
    data: DataSettings = DataSettings()
    partition: PartitionSettings = PartitionSettings()
    model: ModelSettings = ModelSettings()
    lora: LoraSettings | None = Field(
        default=None, description="Train LoRA adapters of some layers. Null: the whole model is trained."
    )
    personal: PersonalSettings | None = Field(
        default=None, description="Parameters that stay with each client. Null: all that is trained is shared."
    )
    privacy: PrivacySettings | None = Field(
        default=None, description="Differential privacy of samples, or of clients. Null: none."
    )
    devices: DevicesSettings | None = Field(
        default=None, description="Unequal devices, simulated by a virtual clock. Null: all are equal; no clock."
    )
    algorithm: dict[str, AlgorithmValue] = Field(
        default={"name": "fedadamw"},
        validate_default=True,
        description="The algorithm's name and its own settings (`fedadamw settings algorithm.NAME` shows them).",
    )
    training: TrainingSettings = TrainingSettings(steps=20)
    federation: FederationSettings = FederationSettings()
    stack: int | None = Field(
        default=None,
        ge=1,
        description="Clients to train at once, by vmap. Null: all of a round on a GPU, one on a CPU. Lower it if GPU "
        "memory is full.",
    )
    shards: int = Field(
        default=1,
        ge=1,
        description="Processes that share one client, each with a part of the frozen weights: for models larger than a "
        "GPU, with lora. --ranks is a multiple of it.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Compile the local step. auto: if that saves more than it takes; a resumed run keeps its choice.",
    )
    checkpoint_every: int = Field(
        default=10, ge=1, description="Rounds between checkpoints. An interrupted run repeats at most this many."
    )
    keep_best: bool = Field(
        default=False,
        description="Keep the model of the best evaluated round in the checkpoint, beside the last round's, for "
        "--best of export, eval and predict. Best is the highest main metric, or the lowest test loss without one. "
        "Set data.validation too: a round chosen on the test set looks better than it is.",
    )
    client_memory: Literal["memory", "disk"] = Field(
        default="memory",
        description="Where the clients' states between rounds are kept. disk: for more clients than memory holds.",
    )
    trackers: tuple[str, ...] = Field(
        default=(), description="Experiment trackers, as accelerate names them: tensorboard, wandb, mlflow, ..."
    )

    @field_validator("compile", mode="before")
    @classmethod
    def _read_switch(cls, value: object) -> object:
        """YAML reads the words on and off as true and false."""
        return ("on" if value else "off") if isinstance(value, bool) else value

    @field_validator("algorithm", mode="before")
    @classmethod
    def _check_algorithm(cls, value: object) -> object:
        from fedadamw.algorithms import registry  # which imports torch

        if not isinstance(value, Mapping):
            return value
        name = value.get("name", "fedadamw")
        check(isinstance(name, str), f"algorithm.name={shorten(name)} must be a word")
        given = {key: inner for key, inner in value.items() if key != "name"}
        return {"name": name, **registry.validate(name, given, others=list_settings_outside("algorithm"))}

    @model_validator(mode="after")
    def _settle_privacy(self) -> "Experiment":
        """With privacy, what would break it and was not given is off."""
        changes: dict[str, tuple[tuple[str, str, object], ...]] = {
            "sample": (("training", "clip", None), ("federation", "sample_counts", False)),
            "client": (("federation", "norm_factor", None),),
        }
        for section, name, off in () if self.privacy is None else changes[self.privacy.unit]:
            settings = getattr(self, section)
            if name not in settings.model_fields_set:
                self.__dict__[section] = settings.model_copy(update={name: off})
        return self

    @model_validator(mode="after")
    def _check_task(self) -> "Experiment":
        task = self.data.task
        unused: tuple[str, ...] = IMAGE_SETTINGS
        if task in (IMAGE, PYTHON):
            unused = (*TEXT_SETTINGS, *LANGUAGE_SETTINGS, *PAIR_SETTINGS)
        if task == PYTHON:
            unused += IMAGE_SETTINGS
        unused += PAIR_SETTINGS if task == LANGUAGE else LANGUAGE_SETTINGS
        for path in unused:
            section, _, key = path.partition(".")
            value, default = getattr(getattr(self, section), key), fields_at([section])[key].default
            check(not value or value == default, f"{path} is not a setting of data.task={task!r}")
        return self

    @property
    def algorithm_name(self) -> str:
        """The name of the algorithm."""
        return str(self.algorithm["name"])

    @property
    def tests_model(self) -> bool:
        """Whether one model is tested on the server's held-out set; else a run's score is the mean of its clients'."""
        personal = self.personal is not None and bool(self.personal.parameters)
        return not personal and self.data.classes is None

    def to_yaml(self) -> str:
        """Return every setting as YAML; the file runs the same experiment again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def fields_at(path: Sequence[str]) -> Mapping[str, FieldInfo]:
    """The settings of the section at `path`; none if there is a setting."""
    section: Any = Experiment
    for part in path:
        annotation = section.model_fields[part].annotation
        section = next((kind for kind in get_args(annotation) if kind is not NoneType), annotation)
    return section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else {}


def list_settings() -> list[str]:
    """The paths of all settings except the algorithms': seed, data.source, training.rounds, ..."""
    return [path for name in Experiment.model_fields for path in _list_below(name) if path != "algorithm"]


def _list_below(path: str) -> list[str]:
    """The paths of all settings of the section at `path`; itself if it is a setting."""
    inner = fields_at(path.split("."))
    return [found for key in inner for found in _list_below(f"{path}.{key}")] if inner else [path]


def list_sections() -> list[str]:
    """The paths of all sections except the algorithms', each before those in it: data, training, training.outer, ..."""
    parts = [path.split(".")[:-1] for path in list_settings()]
    return list(dict.fromkeys(".".join(part[:n]) for part in parts for n in range(1, len(part) + 1)))


def list_settings_outside(section: str, algorithms: Iterable[str] = ()) -> list[str]:
    """The paths of all settings and sections that are not in `section`, those of `algorithms` included."""
    from fedadamw.algorithms import registry

    known = [name for name in algorithms if name in registry.ALGORITHMS]
    paths = [f"algorithm.{key}" for name in known for key in ("name", *registry.settings_of(name))]
    paths += [path for path in list_settings() if "." in path]
    paths += Experiment.model_fields if section else []
    return [path for path in dict.fromkeys(paths) if not section or path.rpartition(".")[0] != section]
