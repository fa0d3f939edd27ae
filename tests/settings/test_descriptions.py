"""Descriptions of settings: they are the reference that users read."""

import re
from typing import get_args

import pytest

from fedadamw.blocks.cuts import GRANULARITIES
from fedadamw.settings.experiment import Experiment, fields_at, list_settings
from fedadamw.settings.model import ModelSettings

UNITS = {"_s": "econds", "_length": "token", "image_size": "ixels", "crop_padding": "pixels", "_every": "Rounds"}
PLAIN_CHOICES = {
    "none",
    "on",
    "off",
    "group",
    "batch",
    "float32",
    "uniform",
    "samples",
    "bfloat16",
    "weighted",
    "reject",
    "memory",
}
EXPLAINS_NULL = re.compile(r"Null|null|Give either|instead of|Needed only|For column")


def field_of(path):
    *section, key = path.split(".")
    return fields_at(section)[key]


@pytest.mark.parametrize("path", [*list_settings(), "algorithm"])
def test_every_setting_has_a_description_in_whole_sentences(path):
    text = field_of(path).description
    assert text, path
    assert text == " ".join(text.split())
    assert text[0].isupper() or text.split()[0].rstrip(",:") in {"auto", "bf16"}
    assert text.endswith((".", "..."))
    assert len(text) <= 400


@pytest.mark.parametrize("path", list_settings())
def test_a_description_says_the_unit_and_what_null_means(path):
    field = field_of(path)
    for ending, unit in UNITS.items():
        if path.endswith(ending) and path != "training.group_by_length":
            assert unit in field.description, f"{path} names no unit"
    if field.default is None:
        assert EXPLAINS_NULL.search(field.description), f"{path} does not say what null means"


def list_words(annotation) -> list[str]:
    """The words that a setting may have, also in a list of them."""
    inner = get_args(annotation)
    return [word for part in inner for word in ([part] if isinstance(part, str) else list_words(part))]


def test_a_description_names_every_choice_that_needs_a_word():
    for path in list_settings():
        choices = list_words(field_of(path).annotation)
        unnamed = [word for word in choices if word not in PLAIN_CHOICES and word not in field_of(path).description]
        assert not unnamed, f"{path}: {unnamed}"
    assert all(name in ModelSettings.model_fields["blocks"].description for name in GRANULARITIES)


def test_every_section_is_described():
    for name, field in Experiment.model_fields.items():
        if fields_at([name]) and field.default is not None:
            assert type(field.default).__doc__.endswith(".")
