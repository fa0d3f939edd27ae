"""Loading settings: recipes, files, overrides."""

import pytest
import yaml

from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load, parse_override, parse_settings
from fedadamw.settings.recipes import RECIPE_FOLDER, list_recipes
from fedadamw.validation import InputError


def test_every_recipe_is_valid_and_round_trips_through_yaml():
    for name in list_recipes():
        experiment = load(name)
        assert parse_settings(yaml.safe_load(experiment.to_yaml())) == experiment
    assert parse_settings({}) == Experiment()


def test_methods_that_step_by_sgd_have_rates_of_their_own_where_a_recipe_tells_fedavgs():
    told = 0
    for recipe in (name for name in list_recipes() if "fedavg:" in (RECIPE_FOLDER / f"{name}.yaml").read_text()):
        names = ("fedadamw", "fedavg", "fedexp", "fedprox", "scaffold", "fedcm")
        adamw, fedavg, fedexp, *others = (load(recipe, [f"algorithm.name={name}"]).training.lr for name in names)
        if fedavg != adamw:
            told += 1
            assert fedexp == fedavg
            assert min(others) >= 10 * adamw, recipe
    assert told >= 10


def test_overrides_are_yaml_and_another_algorithm_starts_from_its_own_defaults():
    experiment = load("digits", ["algorithm.name=fedavg", "training.epochs=2", "training.lr=1e-3"])
    assert experiment.algorithm == {"name": "fedavg", "weight_decay": 1e-3}
    assert (experiment.training.steps, experiment.training.epochs) == (None, 2)
    assert experiment.training.lr == 1e-3


def test_a_special_token_keeps_its_brackets(tmp_path):
    texts = ["data.task=text", "data.source=./reviews"]
    assert load("digits", [*texts, "model.pad_token=[PAD]"]).model.pad_token == "[PAD]"
    assert load("digits", [*texts, "model.pad_token=</s>"]).model.pad_token == "</s>"
    assert parse_override("model.pad_token=[PAD, </s>]") == ("model.pad_token", ["PAD", "</s>"]), "two to compare"
    assert parse_override("model.name=[vit-nano]") == ("model.name", ["vit-nano"])
    (tmp_path / "own.yaml").write_text("data: {task: text, source: ./reviews}\nmodel: {pad_token: [PAD]}\n")
    with pytest.raises(ValueError, match=r"is a list of one word; in YAML the word with its brackets is \"\[PAD\]\""):
        load(str(tmp_path / "own.yaml"))


def test_a_template_keeps_its_braces():
    for text, value in (
        ("{label}", "{label}"),
        ("a: {b}", "a: {b}"),
        ('"{a}\\n"', "{a}\n"),
        ("null", None),
        ("3", "3"),
    ):
        assert parse_override(f"data.prompt={text}") == ("data.prompt", value)


def test_yaml_aliases_of_a_section_are_allowed(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "training: {steps: 1}\nalgorithms:\n  fedavg: &own {lr: 0.5}\n  fedprox: {<<: *own}\n"
    )
    assert load(str(tmp_path / "own.yaml"), ["algorithm=fedprox"]).training.lr == 0.5


def test_a_file_that_holds_no_settings_is_refused(tmp_path):
    (tmp_path / "own.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file"):
        load(str(tmp_path / "own.yaml"))
    for content, message in (("a: [", "not YAML"), ("just words", "holds no settings"), ("lr: 1", "lr is unknown")):
        (tmp_path / "own.yaml").write_text(content)
        with pytest.raises(ValueError, match=message):
            load(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize("section", ["training", "data", "partition"])
def test_a_value_in_place_of_a_section_is_refused_with_an_example(section):
    with pytest.raises(InputError, match=rf"^{section}=3 is a section; set one of its settings: {section}.KEY=VALUE$"):
        load("digits", [f"{section}=3"])


def test_choices_are_words():
    assert load("small/instruct-smollm2", ["data.choices=[1, 2]"]).data.choices == ("1", "2")
    assert load("small/instruct-smollm2", ["data.choices=['yes', 'no']"]).data.choices == ("yes", "no")
    assert load("small/instruct-smollm2", ["data.choices=['1', '1e3', bad]"]).data.choices == ("1", "1e3", "bad")
    with pytest.raises(InputError, match=r"data.choices: YAML reads yes, no, .* put them in quotes: \['yes', 'no'\]"):
        load("small/instruct-smollm2", ["data.choices=[yes, no]"])
