"""The rules that find what each parameter is (query, MLP, embedding, ...) and how it is cut into blocks.

A role is read from the module that owns the parameter, its path and its attributes; heads from the attention
module or the configuration, never guessed. Whatever is left is called unknown and said aloud.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn

GRANULARITIES = ("paper", "coarse", "tensor", "coordinate")

QUERY = {"query", "q_proj", "q_lin", "q_attn", "q", "wq", "to_q"}
KEY = {"key", "k_proj", "k_lin", "k", "wk", "to_k"}
VALUE = {"value", "v_proj", "v_lin", "v", "wv", "to_v"}
FUSED = {"qkv", "c_attn", "qkv_proj", "in_proj"}  # query, key and value one after the other
PROJECTION = {"dense", "out_proj", "o_proj", "out_lin", "proj", "c_proj", "o", "wo", "to_out"}
HEAD = {"classifier", "cls_classifier", "distillation_classifier", "score", "lm_head", "qa_outputs", "decoder"}
TOP_LEVEL_HEAD = {"fc", "head", "heads"}

HEAD_DIM = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim")
HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head")
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads")

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
ADAPTER_MARKS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "modules_to_save"}


class Cut(NamedTuple):
    """Some coordinates of a tensor: seen as (outer, width), the columns from `start`, as (blocks, inner)."""

    outer: int
    start: int
    blocks: int
    inner: int


class Parameter(NamedTuple):
    """A trainable tensor, its role, and where its output units (rows) lie in it."""

    name: str
    tensor: Tensor
    kind: str
    outer: int  # the tensor as (outer, rows, unit): a row is one output unit
    rows: int
    unit: int
    head_dim: int  # rows a head, for queries and keys
    value_rows: int  # of a fused projection: its last rows


def row(blocks: int, inner: int) -> Cut:
    """A whole tensor as `blocks` consecutive runs of `inner` numbers."""
    return Cut(1, 0, blocks, inner)


def cut(p: Parameter, granularity: str) -> tuple[Cut, ...]:
    """The pieces of parameter `p` at a named granularity (one of GRANULARITIES)."""
    n = p.tensor.numel()
    if granularity == "coordinate":
        return (row(n, 1),)
    if granularity == "tensor" or p.kind == "vector":
        return (row(1, n),)
    by_head, by_row = p.head_dim, 1
    if p.kind in ("query", "key"):
        return (_rows(p, 0, p.rows, by_head),)
    if p.kind == "qkv":
        shared = p.rows - p.value_rows
        value = by_row if granularity == "paper" else by_head
        return _rows(p, 0, shared, by_head), _rows(p, shared, p.value_rows, value)
    if granularity == "coarse" and p.kind == "value":
        return (_rows(p, 0, p.rows, by_head),)
    if granularity == "coarse" and p.kind != "unknown":
        return (row(1, n),)
    return (_rows(p, 0, p.rows, by_row),)


def _rows(p: Parameter, first: int, count: int, rows_a_block: int) -> Cut:
    return Cut(p.outer, first * p.unit, count // rows_a_block, rows_a_block * p.unit)


def parameters_of(model: nn.Module) -> list[Parameter]:
    """The trainable parameters of `model`, in the order of its layout, each with its role."""
    modules = dict(model.named_modules())
    found = []
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            path = name.split(".")
            lineage = [modules[".".join(path[:i])] for i in range(len(path)) if ".".join(path[:i]) in modules]
            found.append(_describe(name, tensor, path, lineage))
    return found


def _describe(name: str, tensor: Tensor, path: Sequence[str], lineage: Sequence[nn.Module]) -> Parameter:
    owner = lineage[-1]
    roles = [part for part in _without_adapters(path) if not part.isdigit()]
    kind = _kind(roles, path, owner, tensor)
    outer, rows, unit = _units(kind, owner, tensor)
    head_dim = value_rows = 0
    if kind in ("query", "key", "value", "qkv"):
        head_dim, value_rows = _heads(lineage, kind, rows)
        if head_dim == 0 or rows % head_dim or value_rows % head_dim:
            kind = "value" if kind == "value" else "unknown"
            head_dim = 1
    return Parameter(name, tensor, kind, outer, rows, unit, head_dim, value_rows)


def _without_adapters(path: Sequence[str]) -> Iterator[str]:
    """The path of the layer that an adapter wraps: `query.lora_B.default.weight` is `query.weight`."""
    parts = iter(path)
    for part in parts:
        if part in ADAPTER_MARKS:
            next(parts, None)  # the adapter's own name
        elif part != "base_layer":
            yield part


def _kind(roles: Sequence[str], path: Sequence[str], owner: nn.Module, tensor: Tensor) -> str:
    """What the tensor is, from the names that lead to it and the module that owns it."""
    flat = tensor.numel() == max(tensor.shape, default=1)
    if tensor.dim() < 2 or (flat and not _is_matrix(owner)):  # (1, 1, width) too: a class token
        return "vector"
    if "lora_A" in path or "lora_embedding_A" in path:
        return "lora-a"
    if isinstance(owner, CONVOLUTIONS + TRANSPOSED_CONVOLUTIONS) and "lora_B" not in path:
        return "conv"
    if isinstance(owner, nn.Embedding) or "lora_embedding_B" in path:
        return "embedding"
    leaf = roles[-1] if roles else ""
    if leaf == "relative_position_bias_table":
        return "position-bias"
    if leaf.startswith(("pos_embed", "position_embed", "positional_embed")):
        return "embedding"
    layer, in_attention = _layer_and_place(roles)
    if in_attention or layer in QUERY | KEY | VALUE | FUSED:
        return _attention_kind(layer)
    if type(owner).__name__ == "NonDynamicallyQuantizableLinear":  # the output of nn.MultiheadAttention
        return "projection"
    if not _is_matrix(owner):
        return "unknown"
    return "head" if _is_head(roles[:-1]) else "mlp"


def _layer_and_place(roles: Sequence[str]) -> tuple[str, bool]:
    """The name of the layer that has the weight, and whether it stands inside an attention module."""
    leaf = roles[-1] if roles else ""
    fused = leaf.removesuffix("_weight")  # in_proj_weight and q_proj_weight of nn.MultiheadAttention
    if leaf != fused:
        return fused, fused in QUERY | KEY | VALUE | FUSED
    layer = roles[-2] if len(roles) > 1 else ""
    return layer, any("attn" in r.lower() or "attention" in r.lower() for r in roles[:-2])


def _attention_kind(layer: str) -> str:
    for kind, names in (("query", QUERY), ("key", KEY), ("value", VALUE), ("qkv", FUSED)):
        if layer in names:
            return kind
    return "projection" if layer in PROJECTION else "unknown"


def _is_head(layer_path: Sequence[str]) -> bool:
    if not layer_path:
        return False
    last = layer_path[-1]
    top_level = len(layer_path) == 1 and last in TOP_LEVEL_HEAD
    return last in HEAD or top_level or (last == "out_proj" and "classifier" in layer_path)


def _is_matrix(owner: nn.Module) -> bool:
    """Whether `owner` maps inputs by one matrix: nn.Linear, or transformers' transposed Conv1D."""
    return isinstance(owner, nn.Linear | nn.Conv1d | nn.Conv2d) or _is_transposed(owner)


def _is_transposed(owner: nn.Module) -> bool:
    """transformers' Conv1D keeps its weight as (in, out); known by name, so transformers is not imported."""
    return type(owner).__name__ == "Conv1D" and hasattr(owner, "nf")


def _units(kind: str, owner: nn.Module, tensor: Tensor) -> tuple[int, int, int]:
    """The tensor as (outer, rows, unit), a row being one output neuron, channel, token or head."""
    shape, n = tensor.shape, tensor.numel()
    if kind == "vector":
        return 1, 1, n
    if kind == "position-bias":  # ((2w-1)^2, heads): one block a head
        return shape[0], shape[1], 1
    if isinstance(owner, TRANSPOSED_CONVOLUTIONS):  # (in, out, k, k)
        return shape[0], shape[1], shape[2:].numel()
    if _is_transposed(owner):
        return shape[0], shape[1], 1
    batched = kind == "embedding" and len(shape) > 2  # (1, tokens, width)
    rows = next(size for size in shape if size > 1) if batched else shape[0]
    return 1, rows, n // rows


def _heads(lineage: Sequence[nn.Module], kind: str, rows: int) -> tuple[int, int]:
    """Rows a head, and rows of the value part of a fused projection, from what the modules and configurations say.

    (0, 0) where nothing says how many heads there are.
    """
    heads = _nearest(lineage, HEADS)
    key_value_heads = _nearest(lineage, KEY_VALUE_HEADS) or heads
    parts = {"query": heads, "key": key_value_heads, "value": key_value_heads, "qkv": heads + 2 * key_value_heads}[kind]
    head_dim = _nearest(lineage, HEAD_DIM) or (rows // parts if parts and rows % parts == 0 else 0)
    if kind != "qkv":
        return head_dim, 0
    return head_dim, key_value_heads * head_dim or rows // 3


def _nearest(lineage: Sequence[nn.Module], names: Sequence[str]) -> int:
    """The first of `names` that the nearest module or configuration has as a positive integer, else 0."""
    for place in _places(lineage):
        number = _first_int(place, names)
        if number:
            return number
    return 0


def _places(lineage: Sequence[nn.Module]) -> Iterator[object]:
    """The modules above a parameter, nearest first, each followed by its configuration."""
    for module in reversed(lineage):
        yield module
        config = getattr(module, "config", None)
        if config is not None:
            yield config


def _first_int(place: object, names: Sequence[str]) -> int:
    """The first attribute of `place` among `names` that is a positive integer, else 0."""
    for name in names:
        value = getattr(place, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 0
