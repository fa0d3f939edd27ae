"""What would break the privacy of samples is refused, and what it says to do instead is accepted."""

import numpy as np
import pytest
import torch
from support import tiny_models
from support.text_experiments import ONE

from fedadamw.algorithms import registry
from fedadamw.data.partition import Partition
from fedadamw.prepare.checks import check_settings
from fedadamw.prepare.choices import default_stack
from fedadamw.prepare.privacy import sample_privacy
from fedadamw.prepare.private_problem import check_private_problem
from fedadamw.prepare.problem import Problem
from fedadamw.prepare.simulation import prepare
from fedadamw.randomness import Seeded
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.validation import InputError

PRIVATE = ("privacy.noise_multiplier=1",)
TEXTS = ("data.task=text", "data.source=./texts", "model.name=./bert")
REFUSED = {  # given -> why, and what to give instead
    ("training.clip=10",): ("training.clip=10.0 would clip the noise", "training.clip=null"),
    ("training={epochs: 1, rounds: 2, batch_size: 50}",): ("training.epochs=1: .* set training.steps", None),
    ("federation.sample_counts=true",): ("federation.sample_counts=true tells", "federation.sample_counts=false"),
    ("training.weighting=samples",): ("training.weighting='samples' tells", "training.weighting=uniform"),
    ("training.mean=median",): ("training.mean='median' compares", "training.mean=weighted"),
    ("training.mean=krum",): ("training.mean='krum' compares", "training.mean=weighted"),
    ("training.diagnostics=true",): ("training.diagnostics=true looks", "training.diagnostics=false"),
    ("shards=2", "lora.r=4"): ("shards=2: .* set it to 1", "shards=1"),
    ("personal.finetune=3", "partition.held_out=0.2", "training.client_evaluation=1"): (
        "personal.finetune=3 takes steps that no epsilon counts",
        "personal=null",
    ),
    (*TEXTS, "training.group_by_length=true"): ("training.group_by_length=true", "training.group_by_length=false"),
    ("data.task=causal-lm", *TEXTS[1:], "data.packing=true"): ("data.packing=true", "data.packing=false"),
}


@pytest.mark.parametrize("given", REFUSED, ids=lambda given: given[-1])
@pytest.mark.parametrize("remote", [False, True])
def test_what_breaks_it_is_refused_with_what_to_set_instead(given, remote):
    why, instead = REFUSED[given]
    with pytest.raises(InputError, match=why) as raised:
        check_settings(load("digits", [*given, *PRIVATE]), remote=remote)
    assert "\n" not in str(raised.value)
    assert str(raised.value).endswith("with privacy.unit=sample")
    if instead is not None and "model.name=./bert" not in given:
        assert instead.split("=")[-1] in str(raised.value) or instead == "personal=null"
        check_settings(load("digits", [*given, *PRIVATE, instead]), remote=False)
    check_settings(load("digits", list(given)), remote=False) if "model.name=./bert" not in given else None


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_algorithm_sees_the_data_by_the_gradient_of_a_step_alone(name):
    check_settings(load("digits", [*PRIVATE, f"algorithm.name={name}"]), remote=False)


@pytest.mark.parametrize("huge", ["privacy.clip=1e30", "privacy.noise_multiplier=1e30"])
def test_noise_beyond_float32_is_refused(huge):
    experiment = load("digits", [*PRIVATE, huge])
    with pytest.raises(InputError, match=r"^privacy: noise of \S+ in each number of a gradient is too much"):
        sample_privacy(experiment, Seeded(0))


def test_codecs_after_the_noise_and_personal_parameters_are_fine():
    check_settings(
        load("digits", [*PRIVATE, "training.upload=int8", "training.micro_batch=4", "training.channels_last=true"]),
        remote=True,
    )
    with pytest.warns(UserWarning, match="no global model is tested"):
        check_settings(load("digits", [*PRIVATE, "personal.parameters=['*norm*']"]), remote=False)


NO_FACTS = {"classes": ()}
SOME = object()


def check_problem(facts=NO_FACTS, samples=(0, 1, 2, 3), train=SOME, model=None):
    partition = Partition(np.array(samples), np.array([2, 4]))
    problem = Problem(model or torch.nn.Linear(2, 2), None, facts)
    check_private_problem(load("digits", [*PRIVATE]), problem, train, partition)


def test_models_that_mix_samples_are_refused():
    check_problem()
    with pytest.raises(InputError, match="BatchNorm mixes samples.* with privacy.unit=sample"):
        check_problem(model=torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)))


def test_nodes_do_not_send_sums_of_their_pixels():
    image = {"classes": ("a", "b"), "shape": [1, 8, 8], "fit": "own"}
    with pytest.raises(InputError, match=r"nodes would send sums of their pixels: set data\.mean and data\.std"):
        check_problem(image)
    check_problem({**image, "mean": (0.5,), "std": (0.5,)})


def test_a_sample_is_there_once():
    with pytest.raises(InputError, match=r"sample \[1\] is there 2 times"):
        check_problem(samples=(0, 1, 1, 3))
    check_problem(samples=(0, 1, 1, 3), train=None)  # only pretended


def test_pieces_of_a_text_are_samples_of_their_own(tmp_path):
    tiny_models.folder(tmp_path / "gpt2", "gpt2")
    (tmp_path / "long.csv").write_text("text\n" + "\n".join(["good film " * 40] * 6) + "\n")
    own = ["data.task=causal-lm", f"data.source={tmp_path / 'long.csv'}", "data.text_column=text", "data.max_length=32"]
    settings = [*ONE, *own, f"model={tmp_path / 'gpt2'}", "data.validation=0.3", *PRIVATE]
    with pytest.warns(UserWarning, match="texts were divided into .* more samples: privacy.unit=sample is of each"):
        prepare(load("digits", settings))


def test_the_settings_become_clipping_and_noise():
    experiment = load("digits", ["privacy.noise_multiplier=2", "privacy.clip=0.5", "training.batch_size=20"])
    privacy = sample_privacy(experiment, Seeded(3))
    assert (privacy.clip, privacy.noise_multiplier, privacy.batch_size) == (0.5, 2.0, 20)
    assert privacy.phi == pytest.approx((2 * 0.5 / 20) ** 2)
    assert sample_privacy(load("digits"), Seeded(3)) is None
    with pytest.raises(InputError, match="privacy.epsilon: the noise that keeps to it is not known here"):
        sample_privacy(load("digits", ["privacy.epsilon=3"]), Seeded(3))
    assert sample_privacy(load("digits", [*PRIVATE, "privacy.unit=client"]), Seeded(3)) is None


def test_samples_that_go_through_the_model_singly_are_not_stacked():
    cuda = torch.device("cuda")
    plain, again = (load("digits", [*PRIVATE, f"training.gradient_checkpointing={on}"]) for on in ("false", "true"))
    assert (default_stack(plain, cuda), default_stack(again, cuda)) == (10, 1)


def test_a_run_that_starts_from_another_says_that_both_count(tmp_path):
    whole = ["training={rounds: 1, clients_per_round: 1, steps: 1}", "partition.clients=20", "model.name=vit-nano"]
    folder = RunFolder(tmp_path / "first")
    execute(load("digits", whole), folder, resume=False, report=False)
    second = load("digits", [*whole, f"model.name={folder.path}", *PRIVATE])
    with pytest.warns(UserWarning, match="is a run: what it told of the same samples is not in this run's epsilon"):
        prepare(second)
