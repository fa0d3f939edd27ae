"""Whether the layers that LoRA's settings name are in the model; every message lists what there is."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from fedadamw.settings.lora import ALL_LINEAR, LoraSettings
from fedadamw.validation import InputError, check

ADAPTER = "default"  # peft's name of the one adapter


def find_saved(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the whole names of the modules that lora.modules_to_save names; InputError if one is not there."""
    modules = [name for name, _ in model.named_modules() if name]
    words = sorted({word for name in modules if not (word := name.rpartition(".")[2]).isdigit()})
    found: list[str] = []
    for wanted in names:
        matched = [name for name in modules if name == wanted or name.endswith(f".{wanted}")]
        check(bool(matched), f"lora.modules_to_save: {wanted!r} matches no module; the model has {', '.join(words)}")
        found += matched
    return found


def check_targets(model: nn.Module, targets: Sequence[str] | str | None, heads: Sequence[str]) -> None:
    """Raise InputError if `targets` (names or a pattern) match no layer of `model` outside its `heads`."""
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


def check_adapted(model: nn.Module, lora: LoraSettings) -> None:
    """Raise InputError if the adapters of peft's `model` are not what `lora` asks for, or cannot be."""
    _check_ties(model, "base_layer", "lora.target_modules")
    if lora.modules_to_save:
        _check_ties(model, "original_module", "lora.modules_to_save")
    sides = dict(_sides(model))
    for setting, patterns in (("rank_pattern", lora.rank_pattern), ("alpha_pattern", lora.alpha_pattern)):
        _check_layer_patterns(f"lora.{setting}", patterns, list(sides))
    for name, (rank, side) in sides.items():
        setting = f"lora.r={rank}" if rank == lora.r else f"lora.rank_pattern: {rank}"
        last = name.rpartition(".")[2]
        mend = f"lower it, or give that layer lora.rank_pattern={{{last}: {side}}}"
        if lora.ranks is not None:
            setting, mend = f"lora.ranks: {rank}", "lower it"
        check(rank <= side, f"{setting} is above {side}, the smaller side of {name}; {mend}")


def _sides(model: nn.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the rank of each adapted layer and the smaller side of its matrix, above which no rank adds anything."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.r:
            layer: Any = module
            rank = int(layer.r[ADAPTER])
            embeds = ADAPTER in layer.lora_embedding_A
            factors = [
                layer.lora_embedding_A[ADAPTER] if embeds else layer.lora_A[ADAPTER].weight,
                layer.lora_embedding_B[ADAPTER] if embeds else layer.lora_B[ADAPTER].weight,
            ]
            yield name.removeprefix("base_model.model."), (rank, min(factor.numel() // rank for factor in factors))


def _check_layer_patterns(setting: str, patterns: Mapping[str, float], layers: Iterable[str]) -> None:
    """Raise InputError if no adapted layer's name ends in what a pattern matches, as peft reads it."""
    for pattern in patterns:
        found = any(re.match(rf"(.*\.)?({pattern})$", name) for name in layers)
        words = sorted({name.rpartition(".")[2] for name in layers})
        check(found, f"{setting}: {pattern!r} matches no adapted layer; they are {', '.join(words)}")


def _check_ties(model: nn.Module, mark: str, setting: str) -> None:
    """Raise InputError if a weight below `mark` is shared with another module, which would not see its change."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = next((shared for shared in names.values() if len(shared) > 1 and any(mark in n for n in shared)), None)
    if tied is not None:
        changed, other = sorted(tied, key=lambda name: mark not in name)[:2]
        raise InputError(f"{setting}: {changed} is tied to {other}; leave it out")


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")
