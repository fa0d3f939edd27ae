"""A whole run as one validated object: every setting, and how recipes, files and overrides become one."""

from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.fields import FieldInfo

from fedadamw.algorithms import registry
from fedadamw.blocks.cuts import GRANULARITIES
from fedadamw.models import vision
from fedadamw.models.lora import LoraSettings
from fedadamw.settings import glue
from fedadamw.settings.federation import FederationSettings
from fedadamw.settings.training import TrainingSettings
from fedadamw.validation import check, check_one_of, shorten


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


IMAGE, TEXT, LANGUAGE = "image", "text", "causal-lm"
DATA_TASKS = (IMAGE, TEXT, LANGUAGE, *glue.TASKS)


class DataSettings(_Section):
    """Which samples, what is to be learned of them, and how they are augmented."""

    task: str = Field(
        default=IMAGE,
        description=f"{IMAGE} or {TEXT}: its class; {LANGUAGE}: the next token; or of GLUE {', '.join(glue.TASKS)}",
    )
    source: str = Field(
        default="digits",
        description="digits, a folder, a CSV, JSON lines or Parquet file, or a hub id; GLUE's own for its tasks",
    )
    config: str | None = Field(default=None, description="the data set's configuration, where it has several")
    image_column: str | None = Field(default=None, description="found by its type where not named")
    label_column: str | None = Field(default=None, description="found by its type where not named")
    text_column: str | None = Field(default=None, description="the text; found by its name where not named")
    text_pair_column: str | None = Field(default=None, description="a second text, read together with the first")
    prompt_column: str | None = Field(default=None, description="for causal-lm: what is given and not learned")
    response_column: str | None = Field(default=None, description="for causal-lm: what is learned")
    max_length: int | None = Field(
        default=None, ge=8, description="tokens of the longest text, beyond which it is cut; what the model takes"
    )
    test_source: str | None = Field(default=None, description="held-out samples from another folder, file or hub id")
    test_split: str | None = Field(default=None, description="test, validation, valid or val where not named")
    max_train: int | None = Field(default=None, ge=1, description="use so many random training samples only")
    max_test: int | None = Field(default=None, ge=1, description="use so many random held-out samples only")
    validation: float = Field(
        default=0.0, ge=0, lt=1, description="hold out this share of the training set in place of the test set"
    )
    resident: bool = Field(
        default=True, description="keep the training pixels on the device; false: on disk, read ahead of the training"
    )
    image_size: int | None = Field(
        default=None,
        ge=1,
        le=8192,
        description="resize the shorter side to so many pixels and cut out the middle; the images' own size, if they "
        "have one, or that of a pretrained model's image processor",
    )
    image_mode: Literal["auto", "grey", "rgb"] = Field(
        default="auto", description="colours of the images: auto is rgb where any training image has colour"
    )
    on_bad: Literal["error", "skip"] = Field(
        default="error", description="skip: leave out images that cannot be read, and say how many"
    )
    crop_padding: int = Field(default=0, ge=0, description="random crop from an image padded by so many pixels")
    flip: bool = Field(default=False, description="random horizontal flip")

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str) -> str:
        check_one_of("data.task", value, DATA_TASKS)
        return value

    @field_validator("image_mode", mode="before")
    @classmethod
    def _known_mode(cls, value: Any) -> Any:
        return {"l": "grey", "gray": "grey"}.get(value.lower(), value.lower()) if isinstance(value, str) else value

    @property
    def texts(self) -> bool:
        """Whether the samples are texts."""
        return self.task != IMAGE


class PartitionSettings(_Section):
    """Who holds which samples."""

    kind: Literal["mix", "dirichlet", "iid", "classes", "column", "nodes"] = Field(
        default="mix",
        description="mix: the paper's, disjoint, equal sizes, class mix ~ Dir(concentration); nodes: each its own data",
    )
    clients: int = Field(default=100, ge=1, description="clients, N; for column, as many as it has values")
    concentration: float = Field(
        default=0.3, gt=0, le=1e6, description="of the Dirichlet distribution; smaller is harder"
    )
    minimum: int = Field(default=1, ge=1, description="least samples a client, for dirichlet")
    classes_per_client: int = Field(default=2, ge=1, description="for classes")
    column: str | None = Field(default=None, description="the data's column that names the client, for column")

    @property
    def natural(self) -> str | None:
        """The column that names the clients, if that is how the samples are split."""
        return self.column if self.kind == "column" else None


class ModelSettings(_Section):
    """Which model."""

    name: str = Field(
        default="vit-micro",
        description=f"{', '.join(vision.NAMES)}, a hub id, a folder, or package:NAME/FOLDER inside a package",
    )
    tokenizer: str | None = Field(default=None, description="the model's own where not set; a hub id or a folder")
    pad_token: str | None = Field(default=None, description="for a tokenizer that has none")
    fresh: bool = Field(default=False, description="the shape of a folder's or hub id's model, with fresh weights")
    depth: int | None = Field(default=None, ge=1, description="layers, for the ViTs")
    norm: Literal["group", "batch"] = Field(default="group", description="for the ResNets")
    blocks: str = Field(default="paper", description=f"block granularity: {', '.join(GRANULARITIES)}")

    @field_validator("blocks")
    @classmethod
    def _known_granularity(cls, value: str) -> str:
        check_one_of("model.blocks", value, GRANULARITIES)
        return value


class Experiment(_Section):
    """A whole run. `Experiment()` is much like the recipe `digits`, untuned."""

    seed: int = Field(default=0, ge=0, description="everything random derives from it")
    device: str = Field(default="auto", description="auto, cpu, cuda or one of several: cuda:1")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; torch's own choice where not set")
    data: DataSettings = DataSettings()
    partition: PartitionSettings = PartitionSettings()
    model: ModelSettings = ModelSettings()
    lora: LoraSettings | None = Field(
        default=None, description="train adapters of some layers in place of the whole model"
    )
    algorithm: dict[str, Any] = Field(
        default={"name": "fedadamw"}, validate_default=True, description="name and the algorithm's own settings"
    )
    training: TrainingSettings = TrainingSettings(steps=20)
    federation: FederationSettings = FederationSettings()
    stack: int | None = Field(
        default=None, ge=1, description="clients to train at once; all of a round on a GPU, one on a CPU where not set"
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="compile the local step: auto where it saves more time than it takes"
    )
    checkpoint_every: int = Field(default=10, ge=1, description="rounds between checkpoints")
    client_memory: Literal["memory", "disk"] = Field(
        default="memory", description="where clients' states between rounds are: disk for very many clients"
    )
    trackers: tuple[str, ...] = Field(default=(), description="tensorboard, wandb, mlflow, ...: see accelerate")

    @field_validator("algorithm")
    @classmethod
    def _known_algorithm(cls, value: dict[str, Any]) -> dict[str, Any]:
        name = value.get("name", "fedadamw")
        check(isinstance(name, str), f"algorithm.name={shorten(name)} must be a word")
        given = {k: v for k, v in value.items() if k != "name"}
        return {"name": name, **registry.validate(name, given, others=settings_elsewhere("algorithm"))}

    @model_validator(mode="after")
    def _of_its_task(self) -> "Experiment":
        task, (data, model) = self.data.task, (self.data, self.model)
        of_images = {"data.image_column": data.image_column, "data.flip": data.flip, "model.depth": model.depth}
        of_images |= {"data.crop_padding": data.crop_padding, "data.image_size": data.image_size}
        of_images |= {"data.image_mode": data.image_mode != "auto", "data.on_bad": data.on_bad != "error"}
        of_texts = {"data.text_column": data.text_column, "data.max_length": data.max_length}
        of_texts |= {"model.tokenizer": model.tokenizer, "model.pad_token": model.pad_token}
        of_texts["training.group_by_length"] = self.training.group_by_length
        of_language = {"data.prompt_column": data.prompt_column, "data.response_column": data.response_column}
        of_pairs = {"data.text_pair_column": data.text_pair_column}
        others = {**of_texts, **of_language, **of_pairs} if task == IMAGE else {**of_images}
        others |= of_pairs if task == LANGUAGE else of_language
        wrong = next((name for name, value in others.items() if value), None)
        check(wrong is None, f"{wrong} is no setting of data.task={task!r}")
        return self

    def to_yaml(self) -> str:
        """Every setting, so that the file runs the same experiment again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _fields_at(path: Sequence[str]) -> Mapping[str, FieldInfo]:
    """The settings of the section at `path`; none where a setting is there."""
    section: Any = Experiment
    for part in path:
        annotation = section.model_fields[part].annotation
        section = next((kind for kind in get_args(annotation) if kind is not NoneType), annotation)
    return section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else {}


def settings_elsewhere(section: str, algorithms: Iterable[str] = ()) -> list[str]:
    """The paths of all settings that are not in `section`, those of `algorithms` among them: training.rounds, ..."""
    known = [name for name in algorithms if name in registry.ALGORITHMS]
    own = [f"algorithm.{key}" for name in known for key in ("name", *registry.settings_of(name))]
    every = [*dict.fromkeys(own), *(f"{top}.{key}" for top in Experiment.model_fields for key in _fields_at([top]))]
    every += Experiment.model_fields if section else []
    return [path for path in every if not section or path.rpartition(".")[0] != section]
