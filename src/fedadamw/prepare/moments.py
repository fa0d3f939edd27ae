"""The noise that an algorithm subtracts from its second moments."""

from math import nan

from fedadamw.directions.adamw import NO_NOISE, NoiseInMoments
from fedadamw.settings.experiment import Experiment


def find_noise_in_moments(experiment: Experiment) -> NoiseInMoments:
    """Return the noise that `privacy` adds to a client's gradients, as its algorithm is to know it.

    Each number of a gradient has noise of variance (noise_multiplier clip / batch_size)^2. While the multiplier is not
    known, since privacy.epsilon stands for it, the variance is nan: the algorithm has its shapes, but no step of it
    is accepted.
    """
    privacy = experiment.privacy
    if privacy is None or privacy.unit != "sample" or privacy.debias == "none":
        return NO_NOISE
    multiplier = nan if privacy.noise_multiplier is None else privacy.noise_multiplier
    return NoiseInMoments((multiplier * privacy.clip / experiment.training.batch_size) ** 2, privacy.floor)
