"""LoRA (arXiv 2106.09685) with peft: add adapters, load them, and average their products B A exactly."""

import json
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from fedadamw.blocks.names import HEAD, TOP_LEVEL_HEAD
from fedadamw.models.dtypes import is_half, join_types
from fedadamw.models.loading import MAX_REASON_CHARACTERS, as_input_error, load_place
from fedadamw.settings.lora import ALL_LINEAR, LoraSettings
from fedadamw.validation import InputError, check, missing_extra_error, shorten
from fedadamw.vector import Layout, Vector, bind

if TYPE_CHECKING:
    from peft import LoraConfig

MEGATRON = {"megatron_config": None, "megatron_core": "megatron.core"}  # peft writes these into every file
ADAPTER = "default"  # peft's name of the one adapter


def add_adapters(model: nn.Module, lora: LoraSettings, task_type: str | None, fresh: Sequence[str] = ()) -> nn.Module:
    """Return `model` with adapters on the layers that `lora` names; the rest is frozen, except a classifier's head.

    task_type: peft's (SEQ_CLS, CAUSAL_LM), saved with the adapter. fresh: modules without pretrained weights, trained
    like a head.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise missing_extra_error("lora needs peft", "lora") from None
    heads = [] if task_type == "CAUSAL_LM" else [n for n, _ in model.named_children() if n in HEAD | TOP_LEVEL_HEAD]
    heads += [name for name in fresh if name.split(".")[0] not in heads]
    _check_targets(model, lora.target_modules, heads)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) if isinstance(lora.target_modules, tuple) else lora.target_modules,
        exclude_modules=rf"({'|'.join(map(re.escape, heads))})(\..*)?" if heads else None,
        task_type=task_type,
        modules_to_save=heads or None,
    )
    peft_model = _wrap(model, config)
    _check_ties(peft_model)
    if lora.aggregate == "frozen-a":
        for name, parameter in peft_model.named_parameters():
            if "lora_A" in name or "lora_embedding_A" in name:
                parameter.requires_grad = False
    return peft_model


def _wrap(model: nn.Module, config: "LoraConfig") -> nn.Module:
    """Return peft's model with the adapters of `config`; raises InputError if peft cannot place them."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # peft corrects it for a Conv1D
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # see `_check_ties`
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
        if is_half(dtype):  # what joins now have room for, peft had rounded
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


def _check_targets(model: nn.Module, targets: Sequence[str] | str | None, heads: Sequence[str]) -> None:
    """Raise InputError if `targets` (names or a pattern) match no layer of `model`; the message lists its layers."""
    modules = {
        name: module
        for name, module in model.named_modules()
        if not any(name == head or name.startswith(f"{head}.") for head in heads)
    }
    layers = {name: module for name, module in modules.items() if _is_layer(module)}
    words = sorted({name.rsplit(".", 1)[-1] for name in layers})
    known = f"the model has {', '.join(word for word in words if not word.isdigit())}"
    if targets is None:
        return
    if targets == ALL_LINEAR:
        linear = any(isinstance(module, nn.Linear) or _is_conv1d(module) for module in layers.values())
        check(linear, f"lora.target_modules={ALL_LINEAR}: no layer below the head is linear; {known}")
    elif isinstance(targets, str):
        _check_pattern(targets, modules, list(layers), known)
    else:
        for target in targets:
            if not any(name == target or name.endswith(f".{target}") for name in layers):
                raise InputError(
                    f"lora.target_modules: {target!r} matches no layer; {known}{_suggest_pattern(target, layers)}"
                )


def _suggest_pattern(target: str, layers: Collection[str]) -> str:
    """Return a hint if a list, which holds names only, has a pattern; else an empty text."""
    try:
        pattern = any(re.fullmatch(target, name) for name in layers)
    except re.error:
        return ""
    return f"; give a pattern alone, without brackets: lora.target_modules={target}" if pattern else ""


def _check_pattern(pattern: str, modules: Collection[str], layers: Sequence[str], known: str) -> None:
    """Raise InputError unless `pattern` matches whole names of `layers`, and of no other modules."""
    setting = f"lora.target_modules={pattern}"
    try:
        matched = [name for name in modules if re.fullmatch(pattern, name)]
    except re.error as error:
        raise InputError(f"{setting}: not a valid pattern ({error})") from None
    if not any(name in layers for name in matched):
        words = [word.strip() for word in pattern.split(",")]
        as_list = all(any(layer.endswith(f".{word}") for layer in layers) for word in words)
        check(not as_list, f"{setting}: give a list, [{pattern}]")
        whole = f" (it must match a whole name, such as {layers[0]})" if layers else ""
        raise InputError(f"{setting}: matches no layer{whole}; {known}")
    other = next((name or "the whole model" for name in matched if name not in layers), None)
    check(other is None, f"{setting}: also matches {other}, which is not a layer")


def _check_ties(model: nn.Module) -> None:
    """Raise InputError if an adapted weight is shared with another module, which would not see the adapter."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = next(
        (shared for shared in names.values() if len(shared) > 1 and any("base_layer" in n for n in shared)), None
    )
    if tied is not None:
        adapted, other = sorted(tied, key=lambda name: "base_layer" not in name)[:2]
        raise InputError(f"lora.target_modules: {adapted} is tied to {other}; leave it out")


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


class _Layer(NamedTuple):
    """One adapted layer: the names of its factors, and the frozen weight that they add to."""

    a: str
    b: str
    scaling: float
    transposed: bool  # the weight is (in, out), as in Conv1D
    weight: nn.Parameter


class Folding:
    """Adds the exact mean of the clients' adapters, sum_i w_i s B_i A_i, to the frozen weights, and resets B to 0.

    It differs from the mean of the A times the mean of the B. The next round starts from the mean of the A.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = list(_layers(model))
        check(bool(self._layers), "lora.aggregate='exact' needs adapters of linear layers")
        self._layout = Layout.of(model)
        weights = {layer.a: layer.weight for layer in self._layers}
        self._weights = Layout.of_tensors(weights)
        self.base: Vector = self._weights.flatten(weights)  # (w,) the frozen weights as the module has them
        bind(weights, self.base)

    def load(self, base: Vector) -> None:
        """Copy frozen weights (w,) into the module."""
        self.base.copy_(base)

    def product(self, y: Vector) -> Vector:
        """Return what the adapters of the models `y` (..., d) add to the frozen weights, (..., w)."""
        named = self._layout.views(y)
        parts = []
        for layer in self._layers:
            added = layer.scaling * (named[layer.b] @ named[layer.a])
            parts.append((added.transpose(-1, -2) if layer.transposed else added).flatten(-2))
        return torch.cat(parts, -1)

    def reset_adapters(self, x: Vector) -> Vector:
        """Return a copy of `x` (d,) with every B set to 0: the adapters then add nothing."""
        reset = x.clone()
        named = self._layout.views(reset)
        for layer in self._layers:
            named[layer.b].zero_()
        return reset


def _layers(model: nn.Module) -> Iterator[_Layer]:
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            weight: Any = module.get_base_layer().weight
            linear = ADAPTER in module.lora_A and isinstance(module.lora_A[ADAPTER], nn.Linear)
            check(linear, f"lora.aggregate='exact' supports linear layers only; {name} is not one")
            a, b = (f"{name}.{factor}.{ADAPTER}.weight" for factor in ("lora_A", "lora_B"))
            yield _Layer(a, b, module.scaling[ADAPTER], bool(getattr(module, "fan_in_fan_out", False)), weight)
