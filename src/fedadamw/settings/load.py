"""From recipes, files and overrides to one validated experiment."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedadamw.algorithms import registry
from fedadamw.io.yaml_text import LONGEST, read_yaml
from fedadamw.settings.experiment import Experiment, _fields_at, settings_elsewhere
from fedadamw.settings.recipes import RECIPES, recipes
from fedadamw.validation import InputError, check, check_one_of, shorten, suggest

NAMED = ("model", "algorithm")  # sections whose name may stand for them: -s model=DIR


TOKENS = ("model.pad_token",)  # settings whose words may have brackets, which YAML takes for a list: [PAD]


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
    check(isinstance(section, dict), f"algorithm={shorten(section)}: is a section; set algorithm.name")
    name = section.get("name", "fedadamw")
    check(isinstance(name, str), f"algorithm.name={shorten(name)} must be a word")
    for key, value in own_settings(recipe, own, name).items():
        put(settings, "training.lr" if key == "lr" else f"algorithm.{key}", value)
    for path, value in given:
        put(settings, path, value)
    return parse(settings)


def own_settings(recipe: str, own: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the section `algorithms` of a recipe says of algorithm `name`; every name in it must be one."""
    for known in own:
        check_one_of(f"{recipe}: algorithms", known, registry.ALGORITHMS)
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
                f"recipe {recipe!r} is unknown{suggest(recipe, known)}; use one of {', '.join(known)}, or a YAML file"
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
        raise InputError(f"-s {shorten(override)}: give key.path=value, for example training.lr=0.001")
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
            raise InputError(f"-s {path}={shorten(value)}: {section} is a setting, not a section")
    if path == "algorithm.name" and inner.get("name", "fedadamw") != value:
        inner.clear()  # another algorithm has other settings
    if path == "training.epochs":
        inner.pop("steps", None)
    if path == "training.steps":
        inner.pop("epochs", None)
    inner[key] = value


def _value(text: str) -> Any:
    """A YAML value; `1e-3`, which YAML 1.1 takes for a word, is a number here."""
    return _numbers(read_yaml(f"-s ...={shorten(text)}", text))


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
        hint = suggest(path[-1], [*names, *others], ".")
        return f"{where} is unknown{hint}; use one of {', '.join(names)}"
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    hint = ""
    if first["type"] == "string_type" and _is_word_in_brackets(given):
        hint = f' is a list of one word; in YAML the word with its brackets is "[{given[0]}]"'
    if first["type"] == "literal_error":
        hint = suggest(str(given), re.findall(r"'(.*?)'", first["ctx"]["expected"]))
    return f"{where}={shorten(given)}{hint}: {first['msg'][0].lower()}{first['msg'][1:]}"
