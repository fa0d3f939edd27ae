"""Every setting in words: type, default, range and what it does, for `fedadamw settings` and docs/settings.md.

All of it comes from the fields of the sections and from the algorithms' source; torch is not imported.
"""

import re
from collections.abc import Iterable, Iterator
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from fedadamw.algorithms.fields import AlgorithmField, AlgorithmSource, list_names, read_algorithm, read_imported
from fedadamw.algorithms.plugins import find_plugins
from fedadamw.settings.experiment import Experiment, fields_at, list_sections
from fedadamw.validation import InputError, suggest

TOP_LEVEL = "top level"
ALGORITHM = "algorithm"
ONE_OF = "one of "


class Setting(NamedTuple):
    """One setting, all in words."""

    path: str  # as -s takes it: training.lr
    kind: str  # "float", "int or null", "list of str"
    default: str  # as in YAML
    range: str  # "above 0", "one of cosine, constant"; "" if every value of the type will do
    about: str  # whole sentences

    @property
    def choices(self) -> tuple[str, ...]:
        """All allowed values, if they are a few words."""
        if self.kind.startswith("bool"):
            return ("true", "false")
        return tuple(self.range.removeprefix(ONE_OF).split(", ")) if self.range.startswith(ONE_OF) else ()


class Group(NamedTuple):
    """The settings of one section, or of one algorithm."""

    name: str  # training, algorithm.fedadamw
    about: str  # whole sentences
    settings: tuple[Setting, ...]


def describe_settings(*, own_only: bool = False) -> list[Group]:
    """Return every section with its settings: those outside sections first, then the sections, then the algorithms.

    Algorithms of other packages are named, without settings: their packages are not imported.
    own_only: without these.
    """
    sections = list_sections()
    top = [name for name in Experiment.model_fields if name not in (*sections, ALGORITHM)]
    plugins = [] if own_only else [name for name in find_plugins() if name not in list_names()]
    groups = [
        Group(
            TOP_LEVEL,
            "Seed, device, engine and checkpoints: what concerns the whole run.",
            _describe_fields("", Experiment.model_fields, top),
        )
    ]
    groups += [Group(name, _describe_section(name), _describe_settings_in(name)) for name in sections]
    groups.append(_describe_choice_of_algorithm([*list_names(), *plugins]))
    groups += [_describe_algorithm(name, read_algorithm(name)) for name in list_names()]
    return [*groups, *(Group(f"{ALGORITHM}.{name}", _name_packages(name), ()) for name in plugins)]


def find_settings(wanted: str) -> list[Group]:
    """Return what `wanted` names: a section, an algorithm's settings, or one setting, of each algorithm that has it.

    A package that has an algorithm is imported if it is asked for. Raises InputError, with the nearest names, if
    nothing has that name.
    """
    groups = describe_settings()
    found = [group for group in groups if wanted in (group.name, group.name.removeprefix(f"{ALGORITHM}."))]
    plugins = [f"{ALGORITHM}.{name}" for name in find_plugins() if name not in list_names()]
    if found:
        return [_describe_plugin(group.name) if group.name in plugins else group for group in found]
    found = list(_pick(groups, wanted))
    if wanted.startswith(f"{ALGORITHM}.") and not found:
        found = list(_pick(map(_describe_plugin, plugins), wanted))
    if not found:
        names = list_names_of_settings(groups)
        raise InputError(f"setting {wanted!r} is unknown{suggest(wanted, names, '.')}; `fedadamw settings` lists all")
    return found


def list_names_of_settings(groups: Iterable[Group]) -> list[str]:
    """Return the names of sections and algorithms, and the paths of all settings."""
    names = [name for group in groups for name in (group.name, *(setting.path for setting in group.settings))]
    return [name for name in dict.fromkeys(names) if name != TOP_LEVEL]


def _pick(groups: Iterable[Group], path: str) -> Iterator[Group]:
    """The groups that have `path`, or algorithm.NAME.KEY, with this setting only."""
    for group in groups:
        of_algorithm = group.name.startswith(f"{ALGORITHM}.")
        for setting in group.settings:
            key = setting.path.rpartition(".")[2]
            if path == setting.path or (of_algorithm and path == f"{group.name}.{key}"):
                yield group._replace(settings=(setting,))


def _describe_section(name: str) -> str:
    """What the section is for; a section that is null by default says so itself."""
    *parents, key = name.split(".")
    field = fields_at(parents)[key]
    return field.description or str(type(field.default).__doc__).splitlines()[0]


def _describe_choice_of_algorithm(names: Iterable[str]) -> Group:
    name = Setting("algorithm.name", "str", "fedadamw", ONE_OF + ", ".join(names), "Name of the algorithm.")
    return Group(ALGORITHM, _describe_section(ALGORITHM), (name,))


def _describe_algorithm(name: str, source: AlgorithmSource) -> Group:
    settings = tuple(_describe_algorithm_field(field) for field in source.fields)
    return Group(f"{ALGORITHM}.{name}", _as_sentence(source.title), settings)


def _name_packages(name: str) -> str:
    return f"Of package {' and '.join(map(str, find_plugins()[name]))}."


def _describe_plugin(group: str) -> Group:
    """The settings of another package's algorithm, which is imported; raises InputError if it cannot be used."""
    from fedadamw.algorithms.registry import ALGORITHMS  # which imports torch

    name = group.removeprefix(f"{ALGORITHM}.")
    found = _describe_algorithm(name, read_imported(ALGORITHMS[name]))
    return found._replace(about=f"{found.about} {_name_packages(name)}")


def _describe_settings_in(section: str) -> tuple[Setting, ...]:
    """The settings of a section, without those of sections in it."""
    path = section.split(".")
    return _describe_fields(section, fields_at(path), [key for key in fields_at(path) if not fields_at([*path, key])])


def _describe_fields(section: str, fields: Any, names: Iterable[str]) -> tuple[Setting, ...]:
    prefix = f"{section}." if section else ""
    return tuple(_describe_field(prefix + name, fields[name]) for name in names)


def _describe_field(path: str, field: FieldInfo) -> Setting:
    choices = _choices_of(field)
    range_ = ONE_OF + ", ".join(choices) if choices else describe_range(field.metadata)
    return Setting(path, _describe_type(field.annotation), to_yaml(field.default), range_, field.description or "")


def _describe_algorithm_field(field: AlgorithmField) -> Setting:
    kind = field.annotation.replace("tuple[float, float]", "list of 2 floats").replace("None", "null")
    about = _as_sentence(f"{field.about[:1].upper()}{field.about[1:]}") if field.about else ""
    return Setting(f"algorithm.{field.name}", kind.replace(" | ", " or "), to_yaml(field.default), field.range, about)


def _choices_of(field: FieldInfo) -> list[str]:
    if get_origin(field.annotation) is Literal:
        return list(get_args(field.annotation))
    extra = field.json_schema_extra
    return [str(word) for word in extra["enum"]] if isinstance(extra, dict) and isinstance(extra["enum"], list) else []


def _describe_type(annotation: Any) -> str:
    """A type in words: `int | None` is "int or null", `tuple[str, ...]` is "list of str"."""
    if annotation is NoneType:
        return "null"
    if get_origin(annotation) is Literal:
        return "str"
    if get_origin(annotation) is tuple:
        return f"list of {_describe_type(get_args(annotation)[0])}"
    if get_origin(annotation) is Annotated:
        return _describe_type(get_args(annotation)[0])
    if get_origin(annotation) is dict:
        return f"map of {' to '.join(map(_describe_type, get_args(annotation)))}"
    if kinds := get_args(annotation):
        *others, last = map(_describe_type, kinds)
        return f"{', '.join(others)} or {last}"
    return str(annotation.__name__)


def describe_range(constraints: Iterable[Any]) -> str:
    """Return pydantic's limits in words, such as "above 0" or "0 to 4"; "" if there are none."""
    limits = {
        name: getattr(constraint, name)
        for constraint in constraints
        for name in ("ge", "gt", "le", "lt")
        if getattr(constraint, name, None) is not None
    }
    numbers = {name: f"{limit:.15g}" for name, limit in limits.items()}
    if "ge" in numbers and len(numbers) == 2:
        return f"{numbers['ge']} to {numbers.get('le') or 'below ' + numbers['lt']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return ", ".join(f"{words[name]} {number}" for name, number in numbers.items())


def to_yaml(value: object) -> str:
    """Return a value as YAML on one line: null, true, 0.0003, [0.9, 0.999]."""
    if isinstance(value, float):
        return re.sub(r"e([+-])0*", r"e\1", repr(value))
    if isinstance(value, tuple):
        return f"[{', '.join(map(to_yaml, value))}]"
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n...\n").strip()


def _as_sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
