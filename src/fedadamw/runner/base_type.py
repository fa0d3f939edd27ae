"""Which type a run's frozen base has: found at its start, written to its manifest, and the same when it resumes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedadamw.engine.ranks import current_team
from fedadamw.io.yaml_text import read_yaml
from fedadamw.models.dtypes import DTYPES, is_half, name_of
from fedadamw.prepare.base import pin_type, with_type
from fedadamw.prepare.device import select_device
from fedadamw.report.run_files import Manifest
from fedadamw.runner.digest import settings_digest
from fedadamw.runner.folder import RunFolder
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


def find_started(folder: RunFolder, experiment: Experiment) -> Manifest | None:
    """Return the manifest of the run that is resumed in `folder`, None for a new one.

    A new run of a study that an earlier version began, before there was model.dtype, gets the manifest of such a run:
    all runs of a study have a base of the same type.
    """
    if folder.started:
        return folder.read_manifest()
    in_study = folder.path.name.endswith(settings_digest(experiment)[:10])  # as study.plan names them
    others = sorted(folder.path.parent.glob("*/config.yaml")) if in_study and experiment.lora is not None else []
    return next((RunFolder(path.parent).read_manifest() for path in others if _is_earlier(path)), None)


def _is_earlier(config: Path) -> bool:
    """Whether a run in a study's folder has adapters, and was begun before there was model.dtype."""
    settings = read_yaml(str(config), config.read_text()) or {}
    return bool(settings.get("lora")) and "dtype" not in (settings.get("model") or {})


def describe_type(experiment: Experiment, module: nn.Module) -> str | None:
    """Return the type of a frozen base in 16 bits, as the manifest has it; None for float32."""
    if experiment.lora is None:
        return None
    return next((name_of(p.dtype) for p in module.parameters() if is_half(p.dtype)), None)
