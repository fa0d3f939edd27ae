"""A whole run as one validated object: every setting, where it comes from, and how it becomes a simulation."""

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fedadamw import registry
from fedadamw.block_rules import GRANULARITIES
from fedadamw.blocks import Blocks
from fedadamw.data import partition as split
from fedadamw.data.batches import ImageTask
from fedadamw.data.partition import Partition
from fedadamw.data.sources import Images, load_images
from fedadamw.engine.randomness import Purpose, numpy_generator, torch_seed
from fedadamw.engine.settings import Training
from fedadamw.engine.simulate import Simulation
from fedadamw.models import vision
from fedadamw.validation import InputError, nearest, one_of

RECIPES = resources.files("fedadamw") / "recipes"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Section):
    """Which images, and how they are augmented."""

    source: str = Field(default="digits", description="digits, a local folder, or a hub id")
    image_column: str | None = Field(default=None, description="found by its type where not named")
    label_column: str | None = Field(default=None, description="found by its type where not named")
    test_split: str | None = Field(default=None, description="test, validation, valid or val where not named")
    max_train: int | None = Field(default=None, ge=1, description="use so many random training samples only")
    max_test: int | None = Field(default=None, ge=1, description="use so many random held-out samples only")
    validation: float = Field(
        default=0.0, ge=0, lt=1, description="hold out this share of the training set in place of the test set"
    )
    crop_padding: int = Field(default=0, ge=0, description="random crop from an image padded by so many pixels")
    flip: bool = Field(default=False, description="random horizontal flip")


class Split(_Section):
    """Who holds which samples."""

    kind: Literal["mix", "dirichlet", "iid", "classes", "column"] = Field(
        default="mix", description="mix: the paper's, disjoint, equal sizes, class mix ~ Dir(concentration)"
    )
    clients: int = Field(default=100, ge=1, description="clients, N; for column, as many as it has values")
    concentration: float = Field(default=0.3, gt=0, description="of the Dirichlet distribution; smaller is harder")
    minimum: int = Field(default=1, ge=1, description="least samples a client, for dirichlet")
    classes_per_client: int = Field(default=2, ge=1, description="for classes")
    column: str | None = Field(default=None, description="the data's column that names the client, for column")


class Model(_Section):
    """Which model."""

    name: str = Field(default="vit-micro", description=f"{', '.join(vision.NAMES)}, a hub id or a folder")
    depth: int | None = Field(default=None, ge=1, description="layers, for the ViTs")
    norm: Literal["group", "batch"] = Field(default="group", description="for resnet18")
    blocks: str = Field(default="paper", description=f"block granularity: {', '.join(GRANULARITIES)}")

    @field_validator("blocks")
    @classmethod
    def _known_granularity(cls, value: str) -> str:
        one_of("blocks", value, GRANULARITIES)
        return value


class Experiment(_Section):
    """A whole run. `Experiment()` is the recipe `digits` in all but its tuned settings."""

    seed: int = Field(default=0, ge=0, description="everything random derives from it")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, ...")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; torch's own choice where not set")
    data: Data = Data()
    partition: Split = Split()
    model: Model = Model()
    algorithm: dict[str, Any] = Field(
        default={"name": "fedadamw"}, validate_default=True, description="name and the algorithm's own settings"
    )
    training: Training = Training(steps=20)
    checkpoint_every: int = Field(default=10, ge=1, description="rounds between checkpoints")
    trackers: tuple[str, ...] = Field(default=(), description="tensorboard, wandb, mlflow, ...: see accelerate")

    @field_validator("algorithm")
    @classmethod
    def _known_algorithm(cls, value: dict[str, Any]) -> dict[str, Any]:
        name = value.get("name", "fedadamw")
        return {"name": name, **registry.validated(name, {k: v for k, v in value.items() if k != "name"})}

    def to_yaml(self) -> str:
        """Every setting, so that the file runs the same experiment again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def recipes() -> dict[str, str]:
    """Names of the recipes that come with the package, each with the first line of its comment."""
    found = {}
    for file in sorted(RECIPES.iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            first = file.read_text().splitlines()[0]
            found[file.name.removesuffix(".yaml")] = first.removeprefix("# ")
    return found


def load(recipe: str, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment of a recipe's name or a YAML file, with `key.path=value` overrides; InputError says what."""
    settings = _read(recipe)
    for override in overrides:
        _apply(settings, override)
    return parse(settings)


def parse(settings: Mapping[str, Any]) -> Experiment:
    """An experiment from nested settings; ValueError names the first wrong one and what is allowed."""
    try:
        return Experiment.model_validate(dict(settings))
    except ValidationError as error:
        raise InputError(_one_line(error)) from None


def _read(recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise InputError(f"{recipe}: no such file")
        text = path.read_text()
    else:
        known = recipes()
        if recipe not in known:
            raise InputError(
                f"recipe {recipe!r} is unknown{nearest(recipe, known)}; use one of {', '.join(known)}, or a YAML file"
            )
        text = (RECIPES / f"{recipe}.yaml").read_text()
    try:
        settings = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{recipe}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise InputError(f"{recipe}: holds no settings (key: value lines)")
    return settings


def _apply(settings: dict[str, Any], override: str) -> None:
    """Put `key.path=value` into nested settings; the value is read as YAML."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(f"-s {override!r}: give key.path=value, for example training.lr=0.001")
    *sections, key = path.split(".")
    inner = settings
    for section in sections:
        inner = inner.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(f"-s {override!r}: {section} is a setting, not a section")
    if path == "algorithm.name" and inner.get("name") != text:
        inner.clear()  # another algorithm has other settings
    if path == "training.epochs":
        inner.pop("steps", None)
    if path == "training.steps":
        inner.pop("epochs", None)
    inner[key] = _value(text)


def _value(text: str) -> Any:
    """A YAML value; `1e-3`, which YAML 1.1 takes for a word, is a number here."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _one_line(error: ValidationError) -> str:
    """pydantic's first complaint as one line, with the nearest name for an unknown key."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        names = _names_at([str(part) for part in first["loc"][:-1]])
        key = str(first["loc"][-1])
        return f"{where} is unknown{nearest(key, names)}; use one of {', '.join(names)}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return message if "algorithm" in message else f"{where}: {message}"
    return f"{where}={first['input']!r}: {message[0].lower()}{message[1:]}"


def _names_at(path: list[str]) -> list[str]:
    """The settings of the section at `path`."""
    section: Any = Experiment
    for part in path:
        section = section.model_fields[part].annotation
    return list(section.model_fields)


class Prepared(NamedTuple):
    """Everything a run needs, built."""

    simulation: Simulation
    train: Images
    test: Images
    partition: Partition
    device: torch.device


def images_of(experiment: Experiment) -> tuple[Images, Images]:
    """The training and held-out images that the experiment names, cut down as it says."""
    data = experiment.data
    train, test = load_images(
        data.source,
        image_column=data.image_column,
        label_column=data.label_column,
        group_column=experiment.partition.column,
        test_split=data.test_split,
    )
    generator = numpy_generator(experiment.seed, Purpose.SPLIT)
    if data.validation:
        order = generator.permutation(len(train))
        held = round(len(train) * data.validation)
        train, test = train.take(order[held:]), train.take(order[:held])
    if data.max_train and data.max_train < len(train):
        train = train.take(generator.permutation(len(train))[: data.max_train])
    if data.max_test and data.max_test < len(test):
        test = test.take(generator.permutation(len(test))[: data.max_test])
    return train, test


def partition_of(experiment: Experiment, train: Images) -> Partition:
    """Who holds which training samples."""
    s, labels = experiment.partition, train.labels
    generator = numpy_generator(experiment.seed, Purpose.PARTITION)
    if s.kind != "column" and s.clients > len(labels):
        raise InputError(f"partition.clients={s.clients:,} is more than the {len(labels):,} training samples")
    if s.kind == "mix":
        return split.mix(labels, s.clients, s.concentration, generator)
    if s.kind == "dirichlet":
        return split.dirichlet(labels, s.clients, s.concentration, s.minimum, generator)
    if s.kind == "iid":
        return split.iid(labels, s.clients, generator)
    if s.kind == "classes":
        return split.by_classes(labels, s.clients, s.classes_per_client, generator)
    if train.groups is None:
        raise InputError("partition.kind='column' needs partition.column, a column of the data")
    return split.by_column(train.groups)


def device_of(experiment: Experiment) -> torch.device:
    """The device that the experiment names; ValueError where it does not exist."""
    if experiment.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(experiment.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={experiment.device!r}: {str(error).splitlines()[0]}") from None
    return device


def prepare(experiment: Experiment) -> Prepared:
    """Load the data, split it, build the model and the algorithm."""
    if experiment.threads:
        torch.set_num_threads(experiment.threads)
    device = device_of(experiment)
    train, test = images_of(experiment)
    clients = partition_of(experiment, train)
    if int(clients.sizes.min()) == 0:
        empty = int((clients.sizes == 0).sum())
        raise InputError(f"{empty} of {len(clients)} clients have no samples; use fewer clients")
    shape = vision.ImageShape(train.pixels.shape[-1], train.pixels.shape[1], len(train.classes))
    if train.pixels.shape[-1] != train.pixels.shape[-2] and experiment.model.name in vision.NAMES:
        raise InputError(
            f"model.name={experiment.model.name!r} takes square images; these are {train.pixels.shape[-2:]}"
        )
    m = experiment.model
    built = vision.initial(
        lambda: vision.build(m.name, shape, depth=m.depth, norm=m.norm),
        torch_seed(experiment.seed, Purpose.INITIAL_MODEL),
    )
    model = built.model.to(device)
    task = ImageTask(
        train,
        test,
        device=device,
        crop_padding=experiment.data.crop_padding,
        flip=experiment.data.flip,
        image_size=built.image_size,
        channels=built.channels,
        mean=built.mean,
        std=built.std,
    )
    settings = {k: v for k, v in experiment.algorithm.items() if k != "name"}
    algorithm = registry.make(experiment.algorithm["name"], settings, Blocks.of(model, m.blocks))
    simulation = Simulation(model, algorithm, task, clients, experiment.training, seed=experiment.seed)
    return Prepared(simulation, train, test, clients, device)
