"""From recipes, files and overrides to one validated experiment."""

import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedadamw.algorithms import registry
from fedadamw.io.yaml_text import MAX_YAML_CHARACTERS, read_yaml
from fedadamw.settings.experiment import Experiment, fields_at, list_settings_outside
from fedadamw.settings.recipes import list_recipes, read_recipe_text
from fedadamw.validation import InputError, check, check_one_of, shorten, suggest

Override = tuple[str, object]  # path and value: ("training.lr", 0.001)

NAMED_SECTIONS = ("model", "algorithm")  # -s model=DIR sets model.name
TEMPLATES = ("data.prompt", "data.response")  # YAML would read {label} as a mapping
LISTS_OF_WORDS = ("data.choices",)  # in which '1' is a word
WORDS_IN_BRACKETS = ("model.pad_token",)  # YAML would read [PAD] as a list


def load(recipe: str, overrides: Iterable[str] = ()) -> Experiment:
    """Return the experiment of a recipe's name or a YAML file, with `key.path=value` overrides.

    A recipe's section `algorithms` has settings for some algorithms, `lr` being training.lr. They are used if that
    algorithm is chosen, unless an override sets them. Raises InputError if anything is wrong.
    """
    return build_experiment(recipe, [parse_override(override) for override in overrides])


def build_experiment(recipe: str, overrides: Sequence[Override]) -> Experiment:
    """As `load`, with parsed overrides."""
    settings = read_recipe(recipe)
    sections = settings.pop("algorithms", None) or {}
    if not isinstance(sections, dict):
        raise InputError(f"{recipe}: algorithms must be a section of one algorithm's settings each")
    for path, value in overrides:
        if path == "algorithm.name":
            set_path(settings, path, value)
    for key, value in _settings_of_algorithm(recipe, sections, _algorithm_name(settings)).items():
        set_path(settings, "training.lr" if key == "lr" else f"algorithm.{key}", value)
    for path, value in overrides:
        set_path(settings, path, value)
    return parse_settings(settings)


def _algorithm_name(settings: Mapping[str, Any]) -> str:
    section = settings.get("algorithm") or {}
    check(isinstance(section, dict), f"algorithm={shorten(section)}: is a section; set algorithm.name")
    name = section.get("name", "fedadamw")
    check(isinstance(name, str), f"algorithm.name={shorten(name)} must be a word")
    return str(name)


def _settings_of_algorithm(recipe: str, sections: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what a recipe's section `algorithms` sets for algorithm `name`; check all names in it."""
    for known in sections:
        check_one_of(f"{recipe}: algorithms", known, registry.ALGORITHMS)
    settings = sections.get(name) or {}
    if not isinstance(settings, dict):
        raise InputError(f"{recipe}: algorithms.{name} must be a section of settings, lr among them")
    return settings


def parse_settings(settings: Mapping[str, object]) -> Experiment:
    """Return the experiment of nested settings; raises InputError for the first wrong one, with what is allowed."""
    try:
        return Experiment.model_validate(dict(settings))
    except ValidationError as error:
        section = settings.get("algorithm")
        name = section.get("name", "fedadamw") if isinstance(section, Mapping) else "fedadamw"
        raise InputError(_describe(error, name)) from None


def read_recipe(recipe: str) -> dict[str, Any]:
    """Return the settings in a recipe or a YAML file; raises InputError if there is none."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        text = _read_text(path)
    else:
        known = list_recipes()
        config = path / "config.yaml"
        check(
            not config.is_file(), f"{recipe!r} is a run's folder: --resume --out {recipe}, or repeat it from {config}"
        )
        if recipe not in known:
            hint = suggest(recipe, known)
            raise InputError(f"recipe {recipe!r} is unknown{hint}; use one of {', '.join(known)}, or a YAML file")
        text = read_recipe_text(recipe)
    settings = read_yaml(recipe, text) or {}
    if not isinstance(settings, dict):
        raise InputError(f"{recipe}: holds no settings (key: value lines)")
    return settings


def _read_text(path: Path) -> str:
    """Return the file's text, or as much of it as shows that it is too long."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(MAX_YAML_CHARACTERS + 1)
    except ValueError:
        raise InputError(f"{path}: not a text file (UTF-8)") from None


def parse_override(override: str) -> tuple[str, Any]:
    """Return the path and the value, read as YAML, of `key.path=value`."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise InputError(f"-s {shorten(override)}: give key.path=value, for example training.lr=0.001")
    if path in TEMPLATES and text.strip() != "null" and text.strip()[:1] not in ("'", '"'):
        return path, text
    value = read_yaml(f"-s ...={shorten(text)}", text)
    value = value if path in LISTS_OF_WORDS else _parse_numbers(value)
    if path in WORDS_IN_BRACKETS and _is_word_in_brackets(value):
        value = text.strip()
    return (f"{path}.name" if path in NAMED_SECTIONS and isinstance(value, str) else path), value


def set_path(settings: MutableMapping[str, Any], path: str, value: object) -> None:
    """Set `path` in nested settings and remove the settings that it excludes."""
    *sections, key = path.split(".")
    inner = settings
    for section in sections:
        inner[section] = {} if inner.get(section) is None else inner[section]  # `lora:` alone is an empty section
        inner = inner[section]
        if not isinstance(inner, dict):
            raise InputError(f"-s {path}={shorten(value)}: {section} is a setting, not a section")
    if path == "algorithm.name" and inner.get("name", "fedadamw") != value:
        inner.clear()  # another algorithm has other settings
    if path == "training.epochs":
        inner.pop("steps", None)
    if path == "training.steps":
        inner.pop("epochs", None)
    inner[key] = value


def _is_word_in_brackets(value: object) -> bool:
    """Whether YAML read `[word]` as a list of one word."""
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], str)


def _parse_numbers(value: object) -> object:
    """Return `value` with numbers for words such as `1e-3`, which is no number in YAML 1.1."""
    if isinstance(value, list):
        return [_parse_numbers(inner) for inner in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _describe(error: ValidationError, algorithm: str) -> str:
    """pydantic's first complaint as one line, with the nearest name for an unknown key or word."""
    first = error.errors()[0]
    path, value = [str(part) for part in first["loc"]], first["input"]
    where, message = ".".join(path), f"{first['msg'][0].lower()}{first['msg'][1:]}"
    if first["type"] == "extra_forbidden":
        return _describe_unknown(path, algorithm)
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    if first["type"] == "model_type":
        return f"{where}={shorten(value)} is a section; set one of its settings: {where}.KEY=VALUE"
    hint = ""
    if first["type"] == "string_type" and _is_word_in_brackets(value):
        hint = f' is a list of one word; in YAML the word with its brackets is "[{value[0]}]"'
    if first["type"] == "literal_error":
        hint = suggest(str(value), re.findall(r"'(.*?)'", first["ctx"]["expected"]))
    return f"{where}={shorten(value)}{hint}: {message}"


def _describe_unknown(path: Sequence[str], algorithm: str) -> str:
    """The message for an unknown setting, with the nearest name of any section."""
    *section, key = path
    names = list(fields_at(section))
    others = list_settings_outside(".".join(section), [algorithm] if section else registry.ALGORITHMS.at_hand)
    hint = suggest(key, [*names, *others], ".")
    return f"{'.'.join(path)} is unknown{hint}; use one of {', '.join(names)}"
