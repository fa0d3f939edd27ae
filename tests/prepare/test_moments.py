"""Algorithms are told of the noise that the section `privacy` adds."""

import math

import pytest
from support.sequences import attention_model

from fedadamw.directions.adamw import NO_NOISE, NoiseInMoments
from fedadamw.prepare.simulation import build_algorithm
from fedadamw.settings.load import parse_settings

PRIVACY = {"clip": 0.5, "noise_multiplier": 2.0, "floor": 0.05}


def algorithm(privacy, **settings):
    experiment = parse_settings({"training": {"batch_size": 20, "steps": 2}, "privacy": privacy, **settings})
    return build_algorithm(experiment, attention_model())


def test_noise_is_that_of_the_mean_over_the_nominal_batch():
    assert algorithm(PRIVACY).noise == NoiseInMoments((2.0 * 0.5 / 20) ** 2, 0.05)
    assert algorithm(PRIVACY, algorithm={"name": "fedavg"}) is not None


@pytest.mark.parametrize("privacy", [None, {**PRIVACY, "debias": "none"}, {**PRIVACY, "unit": "client"}])
def test_there_is_none_without_privacy_of_samples_or_if_it_is_left_in(privacy):
    assert algorithm(privacy).noise == NO_NOISE


def test_noise_that_is_not_known_yet_spoils_every_step():
    assert math.isnan(algorithm({"epsilon": 3.0}).noise.variance)
