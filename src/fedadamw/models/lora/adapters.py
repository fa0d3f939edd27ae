"""Adapters with peft: put them on a model, or load those of an exported folder."""

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedadamw.blocks.names import HEAD, TOP_LEVEL_HEAD
from fedadamw.models.dtypes import is_half, join_types
from fedadamw.models.loading import MAX_REASON_CHARACTERS, as_input_error, load_place
from fedadamw.models.lora.checks import check_adapted, check_targets, find_saved
from fedadamw.models.quantized import is_packed
from fedadamw.settings.lora import LoraSettings
from fedadamw.validation import InputError, check, missing_extra_error, shorten

if TYPE_CHECKING:
    from peft import LoraConfig

MEGATRON = {"megatron_config": None, "megatron_core": "megatron.core"}  # peft writes these into every file


def add_adapters(model: nn.Module, lora: LoraSettings, task_type: str | None, fresh: Sequence[str] = ()) -> nn.Module:
    """Return `model` with adapters on the layers that `lora` names; the rest is frozen.

    A classifier's head and lora.modules_to_save are trained whole. task_type: peft's (SEQ_CLS, CAUSAL_LM), saved with
    the adapter. fresh: modules without pretrained weights, trained like a head.
    """
    heads = [] if task_type == "CAUSAL_LM" else [n for n, _ in model.named_children() if n in HEAD | TOP_LEVEL_HEAD]
    heads += [name for name in fresh if name.split(".")[0] not in heads]
    whole = [*heads, *find_saved(model, lora.modules_to_save)]
    packed = next((name for name in whole if any(map(is_packed, model.get_submodule(name).modules()))), None)
    check(packed is None, f"lora.modules_to_save: {packed} is quantised, and such layers are not trained whole")
    check_targets(model, lora.target_modules, whole)
    saved = [*heads, *(name for name in lora.modules_to_save if name not in heads)]
    adapted = _wrap(model, _to_peft(lora, task_type, saved, whole))
    check_adapted(adapted, lora)
    if lora.aggregate == "frozen-a":
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name or "lora_embedding_A" in name:
                parameter.requires_grad = False
    return adapted


def _to_peft(lora: LoraSettings, task_type: str | None, saved: Sequence[str], whole: Sequence[str]) -> "LoraConfig":
    """Return the settings as peft's. saved: the modules to train; whole: their whole names, without adapters."""
    try:
        from peft import LoraConfig
    except ImportError:
        raise missing_extra_error("lora needs peft", "lora") from None
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) if isinstance(lora.target_modules, tuple) else lora.target_modules,
        exclude_modules=rf"({'|'.join(map(re.escape, whole))})(\..*)?" if whole else None,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        task_type=task_type,
        modules_to_save=list(saved) or None,
    )


def _wrap(model: nn.Module, config: "LoraConfig") -> nn.Module:
    """Return peft's model with the adapters of `config`; raises InputError if peft cannot place them."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # peft corrects it for a Conv1D
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # see `_check_ties`
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft asks for it
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")  # see `check_adapted`
        try:
            return get_peft_model(model, config)  # type: ignore[no-any-return]
        except ValueError as error:
            unnamed = config.target_modules is None
            check(not unnamed, "lora.target_modules: peft has no default for this model; name its layers")
            raise InputError(f"lora.target_modules: {' '.join(str(error).split())[:MAX_REASON_CHARACTERS]}") from None


def load_adapter(model: nn.Module, folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return `model`, whose weights have `dtype`, with the adapter of an exported folder."""
    weights = folder / "adapter_model.safetensors"  # peft would also load a .bin file, or one from the hub
    check(weights.is_file(), f"{weights}: no such file")
    try:
        from peft import PeftModel, set_peft_model_state_dict
        from peft.utils import load_peft_weights
    except ImportError:
        raise missing_extra_error(f"{folder}: an adapter needs peft", "lora") from None
    _check_adapter(folder / "adapter_config.json")

    def load() -> nn.Module:
        adapted = join_types(PeftModel.from_pretrained(model, str(folder)).requires_grad_(False), dtype)  # noqa: FBT003
        if is_half(dtype):  # what join_types has made room for, peft had rounded
            set_peft_model_state_dict(adapted, load_peft_weights(str(folder), device="cpu"))
        return adapted

    return load_place(f"{folder}", str(folder), load)


def _check_adapter(file: Path) -> None:
    """Raise InputError if an adapter is not LoRA, or if loading it would import modules by name."""
    with as_input_error(f"{file}: cannot be read"):
        config = dict(json.loads(file.read_text(encoding="utf-8")))
        kind = config.get("peft_type")
        check(kind == "LORA", f"{file}: peft_type is {shorten(kind)}; only LORA is supported")
        for name, usual in MEGATRON.items():
            check(config.get(name) in (None, usual), f"{file}: {name} is not supported: it would import a module")
