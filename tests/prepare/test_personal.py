"""Patterns of personal parameters: what they match, and what is refused."""

import pytest
from torch import nn

from fedadamw.prepare.personal import check_personal, find_personal
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load
from fedadamw.validation import InputError


def chosen(*patterns):
    model = nn.ModuleDict(
        {"conv": nn.Conv2d(1, 2, 3), "bn": nn.BatchNorm2d(2), "plain": nn.BatchNorm2d(2), "head": nn.Linear(2, 2)}
    )
    model["conv"].bias.requires_grad = False
    return find_personal(Experiment(personal={"parameters": patterns}), model)


def test_statistics_of_a_personal_layer_are_personal():
    assert chosen("bn.*") == ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    assert chosen("bn.bias") == ("bn.bias", "bn.running_mean", "bn.running_var")
    assert chosen("*.running_*") == tuple(f"{n}.running_{s}" for n in ("bn", "plain") for s in ("mean", "var"))
    assert chosen("head.*", "plain.weight") == (
        "plain.weight",
        "head.weight",
        "head.bias",
        "plain.running_mean",
        "plain.running_var",
    )


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["*"], "are all 7 trained parameters: nothing would be sent"),
        (["conv.*", "bn.*", "plain.*", "head.*"], "are all 7 trained parameters"),
        (["hed.weight"], r"'hed.weight' matches no parameter \(did you mean 'head.weight'\?\)"),
        (["head.*", "norm*"], r"'norm\*' matches no parameter; names are such as conv.weight, "),
        (["conv.bias"], r"'conv.bias' matches no trained parameter \(conv.bias is frozen\)"),
    ],
)
def test_patterns_that_match_nothing_or_everything_are_refused(patterns, message):
    with pytest.raises(InputError, match=message) as error:
        chosen(*patterns)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["lora={aggregate: exact}"], "'exact' folds the mean of A and B into the base"),
        (["lora={aggregate: residual}"], "'residual' folds"),
        (["lora={aggregate: alternate}"], "'alternate' trains A and B in turn: use factors"),
        (["lora={ranks: {4: 0.5, 8: 0.5}}"], "lora.ranks pads"),
        (["training.diagnostics=true"], "training.diagnostics compares"),
        (["keep_best=true"], "keep_best keeps what is shared only"),
    ],
)
def test_settings_that_contradict_personal_parameters_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        check_personal(load("digits", ["personal.parameters=[classifier.*]", *settings]), remote=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["training.client_evaluation=0"], "finetune=5 is scored on clients' own held-out samples"),
        (["lora={ranks: {4: 0.5, 8: 0.5}}"], "finetune=5 trains all adapters at once"),
        (["lora={aggregate: alternate}"], "finetune=5 trains all adapters at once"),
    ],
)
def test_settings_that_contradict_tuning_are_refused(settings, message):
    start = ["personal.finetune=5", "partition.held_out=0.2", "training.client_evaluation=1"]
    check_personal(load("digits", start), remote=False)
    with pytest.raises(InputError, match="finetune=5 needs simulated clients"):
        check_personal(load("digits", start), remote=True)
    with pytest.raises(InputError, match=message):
        check_personal(load("digits", [*start, *settings]), remote=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["personal.parameters=[classifier.*]"], "'ditto' gives each client a whole model"),
        (["lora={aggregate: exact}"], "'exact' folds .*: use factors or frozen-a with algorithm.name='ditto'"),
        (["training.diagnostics=true"], "training.diagnostics compares .*: not with algorithm.name='ditto'"),
    ],
)
def test_settings_that_contradict_own_models_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        check_personal(load("digits", ["algorithm.name=ditto", "training.lr=0.1", *settings]), remote=False)
    check_personal(load("digits", ["algorithm.name=ditto", "training.lr=0.1", "keep_best=true"]), remote=False)


def test_a_run_without_scores_is_warned_of():
    with pytest.warns(UserWarning, match="no global model is tested; for scores set partition.held_out=0.2"):
        check_personal(load("digits", ["personal.parameters=[classifier.*]"]), remote=False)


@pytest.mark.parametrize("value", ["classifier.*", "[3]", "null", "['']"])
def test_what_is_no_list_of_patterns_is_refused(value):
    with pytest.raises(InputError, match=r"give patterns in a list, such as \[classifier"):
        load("digits", [f"personal.parameters={value}"])


def test_a_section_without_anything_is_refused():
    with pytest.raises(InputError, match="personal: give parameters, finetune, or both"):
        load("digits", ["personal={}"])
