"""Which type a run's frozen base has: found at its start, written to its manifest, and the same when it resumes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fedadamw.engine.ranks import current_team
from fedadamw.models.dtypes import DTYPES, is_half, name_of
from fedadamw.prepare.base import pin_type, with_type
from fedadamw.prepare.device import select_device
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.model import AUTO

NAMES = (AUTO, *DTYPES)


def keep_type(experiment: Experiment, started: Mapping[str, Any] | None) -> Experiment:
    """Return the experiment of this process with the type of its base: that of the run which `started`, on every rank.

    started: the run's manifest on rank 0, None for a new run and on other ranks.
    """
    kept = experiment if started is None else pin_type(experiment, started.get("model", {}))
    if experiment.lora is None:
        return kept
    device = select_device(experiment)
    number = torch.tensor([float(NAMES.index(kept.model.dtype))], device=device)
    current_team(device, experiment.shards).broadcast([number])
    return with_type(kept, NAMES[int(number)])


def describe_type(experiment: Experiment, module: nn.Module) -> str | None:
    """Return the type of a frozen base in 16 bits, as the manifest has it; None for float32."""
    if experiment.lora is None:
        return None
    return next((name_of(p.dtype) for p in module.parameters() if is_half(p.dtype)), None)
