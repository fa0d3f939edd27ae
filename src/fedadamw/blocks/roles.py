"""The role of a parameter (query, MLP, embedding, ...), from its path and the module that owns it."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from fedadamw.blocks import names
from fedadamw.blocks.names import Role

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Adapted(NamedTuple):
    """The weight that a LoRA B (out, r) adapts, and where it is; a B of stacked experts is (out, r, experts)."""

    path: Sequence[str]
    lineage: Sequence[nn.Module]
    weight: Tensor
    experts: int


def find_adapted(path: Sequence[str], lineage: Sequence[nn.Module]) -> Adapted | None:
    """Return the weight that a LoRA B of peft adapts; None if `path` is that of another parameter."""
    if "lora_B" not in path:
        return None
    at = path.index("lora_B")
    adapter: nn.Module = lineage[at]
    base: Any = adapter
    while hasattr(base, "base_layer"):  # adapters of several parameters may be nested
        base = base.base_layer
    default = "in_proj_weight" if isinstance(base, nn.MultiheadAttention) else "weight"
    leaf = str(getattr(adapter, "parameter_name", default))
    weight = getattr(base, leaf, None)
    if not isinstance(weight, Tensor):
        return None
    experts = getattr(adapter, "num_experts", 1)
    return Adapted([*path[:at], leaf], [*lineage[:at], base], weight, experts)


def role_of(path: Sequence[str], lineage: Sequence[nn.Module], tensor: Tensor) -> tuple[Role, str]:
    """Return the role of a tensor, and the order of its axes (`names.Direct`, `whole`, `tokens` or `channels`)."""
    owner = lineage[-1]
    flat = tensor.numel() == max(tensor.shape, default=1)
    if tensor.dim() > 1 and ("lora_A" in path or "lora_embedding_A" in path):
        return Role(("lora-a",)), "rows"
    if tensor.dim() > 1 and "lora_embedding_B" in path:
        return Role(("embedding",)), "rows"
    if "lora_magnitude_vector" in path:  # DoRA: the lengths of the layer's outputs, a convolution's (1, out, 1, 1)
        return Role(("vector",)), "whole"
    if tensor.dim() < 2 or (flat and not _is_matrix(owner)):  # includes class tokens (1, 1, width)
        return Role(("vector",)), "whole"
    if isinstance(owner, CONVOLUTIONS + TRANSPOSED_CONVOLUTIONS):
        return _read_convolution(path, lineage, tensor)
    if isinstance(owner, nn.Embedding):
        return Role(("embedding",)), "tokens"
    return _read_direct(path, lineage, tensor) or _read_layer(path, lineage)


def _read_convolution(path: Sequence[str], lineage: Sequence[nn.Module], tensor: Tensor) -> tuple[Role, str]:
    """Read the role of a convolution; with kernel size 1 it is a linear layer and may belong to attention."""
    if isinstance(lineage[-1], TRANSPOSED_CONVOLUTIONS):
        return Role(("conv",)), "channels"
    role = _attention_role(path, lineage)
    single = role in (names.QUERY, names.KEY, names.VALUE) and tensor.shape[2:].numel() == 1
    return role if role and single else Role(("conv",)), "rows"


def _read_direct(path: Sequence[str], lineage: Sequence[nn.Module], tensor: Tensor) -> tuple[Role, str] | None:
    """Read the role of a parameter that its module uses directly, not in a layer; None if it is another."""
    owner, leaf = lineage[-1], (_names(path) or [""])[-1]
    for key in (*(f"{type(module).__name__}.{leaf}" for module in reversed(lineage[-2:])), leaf):
        if key in names.DIRECT:
            return Role((names.DIRECT[key].kind,)), names.DIRECT[key].axes
    if isinstance(getattr(owner, "is_transposed", None), bool):  # transformers' stacked experts
        stack = "in-out stack" if owner.is_transposed else "stack"
        return Role(("expert",)), "rows" if tensor.dim() == 2 else stack
    if leaf.startswith(names.POSITIONS):
        return Role(("embedding",)), "tokens"
    if type(owner).__name__.endswith(names.ROUTERS):  # the router's matrix is a direct parameter
        return Role(("router",)), "rows"
    return None


def _read_layer(path: Sequence[str], lineage: Sequence[nn.Module]) -> tuple[Role, str]:
    """Read the role of a linear layer from its name and its place."""
    owner = lineage[-1]
    axes = "in-out" if _is_transposed(owner) else "rows"
    role = _attention_role(path, lineage)
    if role:
        return role, axes
    if type(owner).__name__ == "NonDynamicallyQuantizableLinear":  # the output of nn.MultiheadAttention
        return names.PROJECTION, axes
    if not _is_matrix(owner):
        return Role(("unknown",)), axes
    if any(type(module).__name__.endswith(names.ROUTERS) for module in lineage[-2:]):
        return Role(("router",)), axes
    return Role(("head",)) if _is_head(_names(path)[:-1]) else names.MLP, axes


def _attention_role(path: Sequence[str], lineage: Sequence[nn.Module]) -> Role | None:
    """Return the role of the weight's layer in attention; None for a layer outside."""
    *above, leaf = _names(path) or [""]
    if leaf.removesuffix("_weight") in names.OF_MULTIHEAD_ATTENTION:
        return names.OF_MULTIHEAD_ATTENTION[leaf.removesuffix("_weight")]
    layer = above[-1] if above else ""
    for module in reversed(lineage):
        if f"{type(module).__name__}.{layer}" in names.BY_CLASS:
            return names.BY_CLASS[f"{type(module).__name__}.{layer}"]
    if ".".join(above[-2:]) in names.BY_CLASS:
        return names.BY_CLASS[".".join(above[-2:])]
    if not _in_attention(path, lineage):
        return names.ANYWHERE.get(layer)
    return names.INSIDE.get(layer, Role(("unknown",)))


def _in_attention(path: Sequence[str], lineage: Sequence[nn.Module]) -> bool:
    """Return whether the layer is inside an attention module, and not in an MLP inside it."""
    inside = False
    for name, module in zip(path, lineage[1:-1], strict=False):
        if name in names.MLP_PLACES:
            inside = False
        elif re.search("attn|attention", name.lower()) or type(module).__name__.endswith(names.ATTENTION_CLASSES):
            inside = True
    return inside


def _names(path: Sequence[str]) -> list[str]:
    """Return the path without numbers, adapters and wrappers: `query.lora_B.default.weight` is `query.weight`."""
    return [part for part in _without_adapters(path) if not part.isdigit()]


def _without_adapters(path: Sequence[str]) -> Iterator[str]:
    parts = iter(path)
    for part in parts:
        if part in names.ADAPTER_MARKS:
            next(parts, None)  # the adapter's name
        elif part not in names.WRAPPERS:
            yield part


def _is_head(layer_path: Sequence[str]) -> bool:
    if not layer_path:
        return False
    last = layer_path[-1]
    top_level = len(layer_path) == 1 and last in names.TOP_LEVEL_HEAD
    return last in names.HEAD or top_level or (last == "out_proj" and "classifier" in layer_path)


def _is_matrix(owner: nn.Module) -> bool:
    """Return whether `owner` maps inputs by one matrix: nn.Linear, or transformers' transposed Conv1D."""
    known = type(owner).__name__ in names.MATRIX_CLASSES
    return known or isinstance(owner, nn.Linear | nn.Conv1d | nn.Conv2d) or _is_transposed(owner)


def _is_transposed(owner: nn.Module) -> bool:
    """Return whether `owner` is transformers' Conv1D, with weight (in, out); by name, without importing it."""
    return type(owner).__name__ == "Conv1D" and hasattr(owner, "nf")
