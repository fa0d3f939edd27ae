"""How much noise a run adds: found at its start, written to its manifest, and the same when it resumes."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from fedadamw.checkpoint import CheckpointError
from fedadamw.engine.ranks import current_team
from fedadamw.prepare.device import select_device
from fedadamw.privacy.spending import with_noise
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import shorten


def keep_noise(experiment: Experiment, folder: RunFolder | None) -> Experiment:
    """Return the experiment with the noise of the run that is resumed in `folder`, on every rank.

    As it is if the run is new, or its settings give the noise. folder: None for a new run, and on other ranks.
    """
    if experiment.privacy is None or experiment.privacy.epsilon is None:
        return experiment
    device = select_device(experiment)
    own = math.nan if folder is None else read_noise(folder.read_manifest())
    number = torch.tensor([own], dtype=torch.float64, device=device)
    current_team(device, experiment.shards).broadcast([number])
    return experiment if math.isnan(float(number)) else with_noise(experiment, float(number))


def read_noise(manifest: Mapping[str, Any]) -> float:
    """Return the noise multiplier of a run with differential privacy; CheckpointError if its manifest has none."""
    found = (manifest.get("privacy") or {}).get("noise_multiplier")
    if not isinstance(found, float | int) or not 0 <= found < math.inf:
        raise CheckpointError(f"manifest.json: privacy.noise_multiplier={shorten(found)} is not that of a run")
    return float(found)
