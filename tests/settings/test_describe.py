"""Every setting in words, and docs/settings.md."""

import dataclasses
import re
import sys

import pytest
from support.checkout import ROOT
from support.packages import FEDAVGX, install

from benchmarks.pages import settings as settings_page
from fedadamw.algorithms import registry
from fedadamw.algorithms.fields import read_algorithm
from fedadamw.algorithms.plugins import find_plugins
from fedadamw.settings.describe import describe_settings, find_settings
from fedadamw.settings.experiment import fields_at, list_settings
from fedadamw.settings.load import load, parse_override
from fedadamw.validation import InputError

GROUPS = describe_settings(own_only=True)
SETTINGS = {setting.path: setting for group in GROUPS for setting in group.settings}
OF_ALGORITHMS = [(name, field) for name in registry.BUILT_IN for field in read_algorithm(name).fields]
EDGES = {  # the words of a range, with the values at its edges that are allowed and refused; a and b are its numbers
    r"at least (\S+)": lambda a: ([a], [a - 1]),
    r"above (\S+)": lambda a: ([], [a]),
    r"above (\S+), at most (\S+)": lambda a, b: ([b], [a, b + 1]),
    r"above (\S+), below (\S+)": lambda a, b: ([], [a, b]),
    r"(\S+) to below (\S+)": lambda a, b: ([a], [a - 1, b]),
    r"(\S+) to (\d\S*)": lambda a, b: ([a, b], [a - 1, b + 1]),
}


def edges_of(text):
    """The values that a range allows and refuses at its edges; fails for words that say no range."""
    found = [
        (match, edges) for words, edges in EDGES.items() if (match := re.fullmatch(words, text.removeprefix("each ")))
    ]
    assert found, f"{text!r} says no range"
    match, edges = found[0]
    return edges(*map(float, match.groups()))


def is_refused(path, value):
    try:
        load("digits", [f"{path}={value}"])
    except InputError as error:
        return str(error).startswith(path) and "is not a setting of data.task" not in str(error)
    return False


def test_every_field_of_every_section_and_algorithm_is_there():
    assert {path for path in SETTINGS if not path.startswith("algorithm.")} == set(list_settings())
    algorithms = {group.name.removeprefix("algorithm."): group for group in GROUPS if "algorithm." in group.name}
    assert list(algorithms) == list(registry.BUILT_IN)
    for name, group in algorithms.items():
        fields = [
            field.name
            for field in dataclasses.fields(registry.BUILT_IN[name])
            if field.name not in ("blocks", "noise", "unequal_steps")
        ]
        assert [setting.path for setting in group.settings] == [f"algorithm.{field}" for field in fields]
    for group in GROUPS:
        assert all(s.about.endswith((".", "...")) and len(s.about) > 10 and s.kind for s in group.settings), group.name


def test_a_default_is_the_fields_own():
    for path in list_settings():
        *section, key = path.split(".")
        default = fields_at(section)[key].default
        shown = parse_override(f"{path}={SETTINGS[path].default}")[1]
        assert shown == (list(default) if isinstance(default, tuple) else default), path
    for name, field in OF_ALGORITHMS:
        assert field.default == registry.settings_of(name)[field.name]


@pytest.mark.parametrize("path", [path for path in list_settings() if SETTINGS[path].range])
def test_the_range_of_a_section_is_what_is_checked(path):
    choices = SETTINGS[path].choices
    allowed, refused = (choices, ["nothing-of-these"]) if choices else edges_of(SETTINGS[path].range)
    whole = SETTINGS[path].kind.startswith("int")
    assert [value for value in allowed if is_refused(path, int(value) if whole else value)] == []
    assert [value for value in refused if not is_refused(path, int(value) if whole else value)] == []


@pytest.mark.parametrize(
    ("name", "field"),
    [pytest.param(*row, id=f"{row[0]}-{row[1].name}") for row in OF_ALGORITHMS if row[1].annotation != "bool"],
)
def test_the_range_of_an_algorithms_setting_is_what_is_checked(name, field):
    if field.range.startswith("one of "):
        allowed, refused = field.range.removeprefix("one of ").split(", "), ["nothing-of-these"]
    else:
        allowed, refused = edges_of(field.range)
    kind = {
        "float": float,
        "int": int,
        "int | None": int,
        "float | None": float,
        "str": str,
        "tuple[float, float]": lambda one: [one, one],
    }

    def start(value):
        settings = registry.validate(name, {field.name: kind[field.annotation](value)})
        registry.check_startable({"name": name, **settings})  # which an older run need not pass

    for value in allowed:
        start(value)
    for value in refused:
        with pytest.raises(InputError):
            start(value)


def test_a_name_finds_a_section_an_algorithm_or_one_setting():
    assert [group.name for group in find_settings("training")] == ["training"]
    assert find_settings("fedadamw") == find_settings("algorithm.fedadamw")
    (training,) = find_settings("training.lr")
    assert training.settings == (("training.lr", "float", "0.0003", "above 0", training.settings[0].about),)
    owners = [group.name.removeprefix("algorithm.") for group in find_settings("algorithm.alpha")]
    assert owners == [name for name in registry.BUILT_IN if "alpha" in registry.settings_of(name)]
    assert [group.name for group in find_settings("algorithm.fedmuon.alpha")] == ["algorithm.fedmuon"]
    assert find_settings("algorithm.name")[0].settings[0].choices == tuple(registry.BUILT_IN)


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [
        ("lr", "training.lr"),
        ("trainin", "training"),
        ("model.nam", "model.name"),
        ("algorithm.fedadmw", "algorithm.fedadamw"),
    ],
)
def test_an_unknown_name_gets_the_nearest(wanted, hint):
    with pytest.raises(
        InputError, match=rf"^setting '{wanted}' is unknown \(did you mean '{hint}.*; `fedadamw settings`"
    ):
        find_settings(wanted)


def test_the_page_is_generated_from_the_fields():
    hint = "run python -m benchmarks.pages.settings"
    assert settings_page.page(GROUPS) == (ROOT / "docs" / "settings.md").read_text(encoding="utf-8"), hint


def test_another_packages_algorithm_is_named_at_once_and_imported_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry.ALGORITHMS, "_imported", {})
    commented = FEDAVGX.replace("speed: float = 1.0", "speed: float = 1.0  # of everything (at least 0)")
    install(tmp_path, "described-package", {"fedx": "described_package:FedAvgX"}, commented)
    find_plugins.cache_clear()
    try:
        named = next(group for group in describe_settings() if group.name == "algorithm.fedx")
        assert (named.about, named.settings) == ("Of package described-package 0.1.", ())
        assert "described_package" not in sys.modules
        (found,) = find_settings("algorithm.fedx")
        assert found.about == "FedAvg with one more setting. Of package described-package 0.1."
        assert [setting.path for setting in found.settings] == ["algorithm.weight_decay", "algorithm.speed"]
        assert found.settings[0].about == "Per step, times lr.", "inherited from FedAvg"
        assert found.settings[1] == ("algorithm.speed", "float", "1.0", "at least 0", "Of everything.")
        assert find_settings("algorithm.speed")[0].settings == found.settings[1:]
        assert "fedx" in find_settings("algorithm.name")[0].settings[0].choices
    finally:
        find_plugins.cache_clear()
