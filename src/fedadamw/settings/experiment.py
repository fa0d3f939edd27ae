"""A whole run as one validated object: every setting, and how recipes, files and overrides become one."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from fedadamw import registry
from fedadamw.block_rules import GRANULARITIES
from fedadamw.data import glue
from fedadamw.engine.settings import Federation, Training
from fedadamw.models import vision
from fedadamw.models.lora import Lora
from fedadamw.names import RECIPES, recipes
from fedadamw.validation import InputError, brief, check, nearest, one_of
from fedadamw.yaml_text import LONGEST, read_yaml

NAMED = ("model", "algorithm")  # sections whose name may stand for them: -s model=DIR
TOKENS = ("model.pad_token",)  # settings whose words may have brackets, which YAML takes for a list: [PAD]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


IMAGE, TEXT, LANGUAGE = "image", "text", "causal-lm"
DATA_TASKS = (IMAGE, TEXT, LANGUAGE, *glue.TASKS)


class Data(_Section):
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
        one_of("data.task", value, DATA_TASKS)
        return value

    @field_validator("image_mode", mode="before")
    @classmethod
    def _known_mode(cls, value: Any) -> Any:
        return {"l": "grey", "gray": "grey"}.get(value.lower(), value.lower()) if isinstance(value, str) else value

    @property
    def texts(self) -> bool:
        """Whether the samples are texts."""
        return self.task != IMAGE


class Split(_Section):
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


class Model(_Section):
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
        one_of("model.blocks", value, GRANULARITIES)
        return value


class Experiment(_Section):
    """A whole run. `Experiment()` is much like the recipe `digits`, untuned."""

    seed: int = Field(default=0, ge=0, description="everything random derives from it")
    device: str = Field(default="auto", description="auto, cpu, cuda or one of several: cuda:1")
    threads: int | None = Field(default=None, ge=1, description="CPU threads; torch's own choice where not set")
    data: Data = Data()
    partition: Split = Split()
    model: Model = Model()
    lora: Lora | None = Field(default=None, description="train adapters of some layers in place of the whole model")
    algorithm: dict[str, Any] = Field(
        default={"name": "fedadamw"}, validate_default=True, description="name and the algorithm's own settings"
    )
    training: Training = Training(steps=20)
    federation: Federation = Federation()
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
        check(isinstance(name, str), f"algorithm.name={brief(name)} must be a word")
        given = {k: v for k, v in value.items() if k != "name"}
        return {"name": name, **registry.validated(name, given, others=settings_elsewhere("algorithm"))}

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


def load(recipe: str, overrides: Iterable[str] = ()) -> Experiment:
    """The experiment of a recipe's name or a YAML file, with `key.path=value` overrides; InputError says what.

    A recipe's section `algorithms` has settings of its own for some algorithms, `lr` being training.lr: they hold
    where that algorithm is chosen and nothing overrides them.
    """
    return assemble(recipe, [parsed(override) for override in overrides])


def assemble(recipe: str, given: Sequence[tuple[str, Any]]) -> Experiment:
    """As `load`, with overrides that are (path, value) already."""
    settings = read(recipe)
    own = settings.pop("algorithms", None) or {}
    if not isinstance(own, dict):
        raise InputError(f"{recipe}: algorithms must be a section of one algorithm's settings each")
    for path, value in given:
        if path == "algorithm.name":
            put(settings, path, value)
    section = settings.get("algorithm") or {}
    check(isinstance(section, dict), f"algorithm={brief(section)}: is a section; set algorithm.name")
    name = section.get("name", "fedadamw")
    check(isinstance(name, str), f"algorithm.name={brief(name)} must be a word")
    for key, value in own_settings(recipe, own, name).items():
        put(settings, "training.lr" if key == "lr" else f"algorithm.{key}", value)
    for path, value in given:
        put(settings, path, value)
    return parse(settings)


def own_settings(recipe: str, own: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the section `algorithms` of a recipe says of algorithm `name`; every name in it must be one."""
    for known in own:
        one_of(f"{recipe}: algorithms", known, registry.ALGORITHMS)
    found = own.get(name) or {}
    if not isinstance(found, dict):
        raise InputError(f"{recipe}: algorithms.{name} must be a section of settings, lr among them")
    return found


def parse(settings: Mapping[str, Any]) -> Experiment:
    """An experiment from nested settings; ValueError names the first wrong one and what is allowed."""
    try:
        return Experiment.model_validate(dict(settings))
    except ValidationError as error:
        section = settings.get("algorithm")
        name = section.get("name", "fedadamw") if isinstance(section, Mapping) else "fedadamw"
        raise InputError(_one_line(error, name)) from None


def read(recipe: str) -> dict[str, Any]:
    """The settings as a recipe's name or a YAML file has them; InputError where there is none."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise InputError(f"{recipe}: no such file")
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read(LONGEST + 1)  # which is refused, however much more there is
        except ValueError:
            raise InputError(f"{recipe}: not a text file (UTF-8)") from None
    else:
        known = recipes()
        if recipe not in known:
            raise InputError(
                f"recipe {recipe!r} is unknown{nearest(recipe, known)}; use one of {', '.join(known)}, or a YAML file"
            )
        text = (RECIPES / f"{recipe}.yaml").read_text()
    settings = read_yaml(recipe, text) or {}
    if not isinstance(settings, dict):
        raise InputError(f"{recipe}: holds no settings (key: value lines)")
    return settings


def parsed(override: str) -> tuple[str, Any]:
    """The path and the value, read as YAML, of `key.path=value`."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(f"-s {brief(override)}: give key.path=value, for example training.lr=0.001")
    value = _value(text)
    if path in TOKENS and _is_word_in_brackets(value):
        value = text.strip()
    return (f"{path}.name" if path in NAMED and isinstance(value, str) else path), value


def put(settings: dict[str, Any], path: str, value: Any) -> None:
    """Put the setting at `path` into nested settings, and out what it excludes."""
    *sections, key = path.split(".")
    inner = settings
    for section in sections:
        inner[section] = {} if inner.get(section) is None else inner[section]  # an empty section is none
        inner = inner[section]
        if not isinstance(inner, dict):
            raise InputError(f"-s {path}={brief(value)}: {section} is a setting, not a section")
    if path == "algorithm.name" and inner.get("name", "fedadamw") != value:
        inner.clear()  # another algorithm has other settings
    if path == "training.epochs":
        inner.pop("steps", None)
    if path == "training.steps":
        inner.pop("epochs", None)
    inner[key] = value


def _value(text: str) -> Any:
    """A YAML value; `1e-3`, which YAML 1.1 takes for a word, is a number here."""
    return _numbers(read_yaml(f"-s ...={brief(text)}", text))


def _is_word_in_brackets(value: Any) -> bool:
    """Whether YAML read `[word]`, a list of one word."""
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)


def _numbers(value: Any) -> Any:
    """The same with words that are numbers as numbers."""
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _one_line(error: ValidationError, algorithm: str) -> str:
    """pydantic's first complaint as one line, with the nearest name for an unknown key or word."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where, given = ".".join(path), first["input"]
    if first["type"] == "extra_forbidden":
        names = list(_fields_at(path[:-1]))
        others = settings_elsewhere(".".join(path[:-1]), [algorithm] if path[:-1] else registry.ALGORITHMS)
        hint = nearest(path[-1], [*names, *others], ".")
        return f"{where} is unknown{hint}; use one of {', '.join(names)}"
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    hint = ""
    if first["type"] == "string_type" and _is_word_in_brackets(given):
        hint = f' is a list of one word; in YAML the word with its brackets is "[{given[0]}]"'
    if first["type"] == "literal_error":
        hint = nearest(str(given), re.findall(r"'(.*?)'", first["ctx"]["expected"]))
    return f"{where}={brief(given)}{hint}: {first['msg'][0].lower()}{first['msg'][1:]}"


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
