"""The frozen base of a run: which type its weights have, and what a base of few bits cannot do."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedadamw.machine.devices import describe_cpu
from fedadamw.models.dtypes import DTYPES, Weights, is_half, name_of
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.quantized import check_library, refuse_whole
from fedadamw.models.vision import NAMES
from fedadamw.prepare.architecture import CONFIG, is_run, resolve_model
from fedadamw.settings.data import PYTHON
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load
from fedadamw.settings.lora import LoraSettings
from fedadamw.settings.model import AUTO
from fedadamw.validation import InputError, check


def choose_weights(experiment: Experiment, pretrained: Pretrained | None) -> Weights:
    """Return how the weights of the experiment's model come into memory."""
    dtype = _choose_type(experiment, pretrained)
    _check_one_half_type(experiment, name_of(dtype))
    compute = torch.bfloat16 if experiment.training.precision == "bf16" else dtype
    return Weights(resolve_model(experiment.model).fresh, dtype, experiment.model.quantize, compute)


def _choose_type(experiment: Experiment, pretrained: Pretrained | None) -> torch.dtype:
    """Return model.dtype; auto: a frozen base's own, if nothing is added to it, else float32.

    Of files in float16 bfloat16: no loss is scaled here, so small gradients would vanish in float16.
    """
    model, lora = experiment.model, experiment.lora
    if model.dtype != AUTO:
        return DTYPES[model.dtype]
    if lora is None or pretrained is None or lora.changes_base:
        return torch.float32
    if is_run(model.name) and not model.fresh:
        return _type_of_run(model.name)
    return torch.bfloat16 if is_half(pretrained.dtype) else pretrained.dtype


def _type_of_run(name: str) -> torch.dtype:
    """Return the type of the model that a run trained: of its base below adapters, else float32."""
    path = Path(name).expanduser()
    try:
        facts = json.loads((path / "manifest.json").read_text())["model"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"model.name={name!r}: its manifest.json cannot be read ({error})") from None
    return DTYPES[pin_type(load(str(path / CONFIG)), facts).model.dtype.replace(AUTO, "float32")]


def pin_type(experiment: Experiment, facts: Mapping[str, Any] | None) -> Experiment:
    """Return the experiment with the type that a run's base has; facts: of its model, in its manifest.

    A run that began before there was model.dtype has a base in float32. Only `auto` is replaced.
    """
    if facts is None or experiment.model.dtype != AUTO or experiment.lora is None:
        return experiment
    name = str(facts.get("dtype", "float32"))
    check(name in DTYPES, f"manifest.json: the model's dtype={name!r} is unknown")
    return with_type(experiment, name)


def with_type(experiment: Experiment, name: str) -> Experiment:
    """Return the experiment with another model.dtype."""
    model = experiment.model.model_copy(update={"dtype": name})
    return experiment.model_copy(update={"model": model})


def check_base(experiment: Experiment) -> None:
    """Raise InputError if the settings ask for a base of few bits where it cannot be; nothing is read."""
    if experiment.data.task == PYTHON:
        return
    model, lora = experiment.model, experiment.lora
    check(
        lora is not None or model.dtype in (AUTO, "float32"),
        f"model.dtype={model.dtype}: what is trained stays float32; train adapters on a frozen base (-s lora.r=16), or "
        "set training.precision=bf16 instead",
    )
    _check_one_half_type(experiment, model.dtype)
    if model.quantize == "none":
        return
    if lora is None:
        raise refuse_whole(model.quantize)
    name, given = model.name, f"model.quantize={model.quantize}"
    _check_few_bits(experiment, lora, given, model.quantize)
    check(
        resolve_model(model).name not in NAMES, f"{given}: {name!r} is too small to quantise; name a pretrained model"
    )
    in_run = is_run(name) and not model.fresh
    check(not in_run, f"{given}: {name!r} is a run's folder; export it (fedadamw export --merged) and name the export")
    check_library(given)


def _check_one_half_type(experiment: Experiment, dtype: str) -> None:
    """Raise InputError if a base of `dtype` would meet autocast's other type of 16 bits, which torch cannot join."""
    mixed = dtype == "float16" and experiment.training.precision == "bf16"
    check(not mixed, "model.dtype=float16 does not mix with training.precision=bf16; set model.dtype=bfloat16")


def warn_if_not_stacked(experiment: Experiment, device: torch.device) -> None:
    """Warn if clients would be stacked on this device, but for a quantised base."""
    usual = experiment.stack is None and device.type != "cpu" and experiment.training.clients_per_round > 1
    if usual and experiment.model.quantize != "none":
        given = f"model.quantize={experiment.model.quantize}"
        warnings.warn(f"{given}: clients train one after the other, as with stack=1", stacklevel=3)


def warn_if_emulated(experiment: Experiment, module: nn.Module, device: torch.device) -> None:
    """Warn if the model computes in bfloat16 on a CPU without instructions for it: it is forty times slower."""
    if device.type != "cpu" or describe_cpu().bfloat16 is not False:
        return
    if experiment.training.precision == "bf16":
        given, instead = "training.precision=bf16", "training.precision=float32"
    elif any(p.dtype == torch.bfloat16 for p in module.parameters()):
        given, instead = "a base in bfloat16", "model.dtype=float32"
    else:
        return
    warnings.warn(f"{given}: this CPU has no instructions for bfloat16, so it is slow; set {instead}", stacklevel=3)


def _check_few_bits(experiment: Experiment, lora: LoraSettings, given: str, quantize: str) -> None:
    """Raise InputError if the experiment asks for what a base of so many bits cannot do; given: why it has so few."""
    check(not (lora.dora and quantize == "8bit"), f"lora.dora=true works with bases in 4 bits, not with {given}")
    changed = f"lora.aggregate={lora.aggregate} adds a little to the base in each round, which {given} would round away"
    check(not lora.changes_base, f"{changed}; take another lora.aggregate")
    check(experiment.shards == 1, f"{given}: quantised weights are not split; set shards=1")
    check((experiment.stack or 1) == 1, f"{given}: its clients train one after the other; set stack=1")


def check_own_quantisation(experiment: Experiment, pretrained: Pretrained | None) -> None:
    """Raise InputError if the model's files are quantised already, and the experiment trains what that forbids."""
    if pretrained is None or experiment.data.task == PYTHON or (own := pretrained.quantised) == "none":
        return
    name, lora = f"model.name={pretrained.name!r}", experiment.lora
    if lora is None:
        raise InputError(f"{name}, in {own} already, is not trained as a whole; train adapters: -s lora.r=16")
    _check_few_bits(experiment, lora, f"{name} (in {own} already)", own)


def check_shards(experiment: Experiment) -> None:
    """Raise InputError if the frozen weights cannot be split over `shards` processes."""
    lora, given = experiment.lora, f"shards={experiment.shards}"
    if experiment.shards == 1:
        return
    if lora is None:
        raise InputError(f"{given} splits frozen weights: give lora, or train with shards=1")
    changes = f"{given}: lora.aggregate={lora.aggregate!r} changes the frozen weights, which are split; use factors"
    check(not (lora.changes_base or lora.aggregate == "alternate"), changes)
    check(experiment.stack in (None, 1), f"{given}: clients train one after the other, not stack={experiment.stack}")
