"""Privacy of clients: every setting that would break it is refused with what to set; what is not given is off."""

import pytest
from torch import nn

from fedadamw.engine.workspace import Workspace
from fedadamw.prepare.checks import check_settings
from fedadamw.prepare.client_privacy import check_client_problem
from fedadamw.prepare.privacy import check_privacy
from fedadamw.prepare.simulation import prepare
from fedadamw.randomness import OperatingSystem, Seeded
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load
from fedadamw.validation import InputError

CLIENT = "privacy={unit: client, noise_multiplier: 1.0}"
REFUSED = {  # what is set, and what the line says to set instead
    "epochs": (["training.steps=null", "training.epochs=1"], "set training.steps"),
    "weights": (["training.weighting=samples"], "set training.weighting=uniform"),
    "median": (["training.mean=median"], "set training.mean=weighted"),
    "krum": (["training.mean=krum"], "set training.mean=weighted"),
    "diagnostics": (["training.diagnostics=true"], "set training.diagnostics=false"),
    "exact": (["lora.aggregate=exact"], "set lora.aggregate=factors"),
    "residual": (["lora.aggregate=residual"], "set lora.aggregate=factors"),
    "ranks": (["lora={ranks: {2: 0.5, 4: 0.5}}"], "leave it out, set lora.r"),
    "tuning": (
        ["personal.finetune=2", "partition.held_out=0.2", "training.client_evaluation=1"],
        "leave out personal.finetune",
    ),
}
REFUSED_ON_NODES = {
    "medians": (["federation.norm_factor=10"], "set it to null"),
    "surplus": (["federation.over_selection=0.5"], "set it to 0"),
    "scores": (["partition.held_out=0.2", "training.client_evaluation=1"], "set training.client_evaluation=0"),
}


@pytest.mark.parametrize(("given", "instead"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("remote", [False, True])
def test_what_would_tell_more_of_a_client_is_refused(given, instead, remote):
    with pytest.raises(InputError, match="privacy.unit=client") as error:
        check_privacy(load("digits", [CLIENT, *given]), remote=remote)
    assert instead in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("given", "instead"), REFUSED_ON_NODES.values(), ids=REFUSED_ON_NODES)
def test_what_would_couple_nodes_or_tell_their_sums_is_refused(given, instead):
    experiment = load("digits", [CLIENT, *given])
    check_settings(experiment, remote=False)
    with pytest.raises(InputError, match="privacy.unit=client") as error:
        check_settings(experiment, remote=True)
    assert instead in str(error.value)


def test_a_bound_by_medians_that_was_not_given_is_off():
    assert load("digits", [CLIENT]).federation.norm_factor is None
    assert load("digits", [CLIENT, "federation.norm_factor=5"]).federation.norm_factor == 5
    assert load("digits").federation.norm_factor == Experiment().federation.norm_factor == 10
    check_settings(load("digits", [CLIENT]), remote=True)


def test_clipping_of_gradients_and_a_fixed_bound_are_fine():
    given = ["training.clip=1", "federation={max_norm: 3, norm_action: clip}", "training.upload=int8"]
    check_settings(load("digits", [CLIENT, *given]), remote=True)


def test_running_statistics_may_not_travel():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    experiment = load("digits", [CLIENT])
    with pytest.raises(InputError, match=r"BatchNorm1d \(1\) .*statistics.*personal.parameters=\['1\*'\]"):
        check_client_problem(experiment, Workspace(model), {})
    check_client_problem(experiment, Workspace(model, ["1.weight", "1.bias", "1.running_mean", "1.running_var"]), {})
    check_client_problem(load("digits"), Workspace(model), {})


def test_sums_of_nodes_pixels_may_not_travel():
    experiment, workspace = load("digits", [CLIENT]), Workspace(nn.Linear(2, 2))
    with pytest.raises(InputError, match="set data.mean and data.std"):
        check_client_problem(experiment, workspace, {"shape": (8, 1, 10)})
    check_client_problem(experiment, workspace, {"shape": (8, 1, 10), "mean": (0.5,), "std": (0.2,)})


def test_the_engine_gets_what_the_settings_say():
    given = "privacy={unit: client, noise_multiplier: 0.7, clip: 2, moment_clip: 3, quantile: 0.4, floor: 0.1}"
    prepared = prepare(load("digits", [given, "training={clients_per_round: 7, steps: 4}", "seed=5"]))
    of = prepared.simulation().client_privacy
    assert (of.noise_multiplier, of.clip, of.moment_clip, of.quantile, of.floor) == (0.7, 2, 3, 0.4, 0.1)
    assert (of.clients, of.steps, of.entropy) == (7, 4, Seeded(5))
    nodes = prepared.simulation().clients  # stand for clients that are not simulated
    assert isinstance(prepared.simulation(nodes).client_privacy.entropy, OperatingSystem)


def test_an_epsilon_becomes_the_noise_that_keeps_to_it():
    pytest.importorskip("dp_accounting")
    privacy = "privacy={unit: client, epsilon: 9.0495, delta: 1e-3}"
    prepared = prepare(load("digits", [privacy, "training.rounds=300"]))  # 10 of 100 clients a round
    assert prepared.simulation().client_privacy.noise_multiplier == pytest.approx(1.0, abs=2e-3)
