"""Where the heads are in the rows of an attention layer, from the attributes of its modules and configurations."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

from fedadamw.blocks.names import Role

HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head", "num_k_heads")
KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_heads", "num_k_heads")
KEY_DIM = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "head_k_dim", "key_dim", "dim_head")
QUERY_DIM = ("qk_head_dim", *KEY_DIM)
VALUE_DIM = ("v_head_dim", "head_v_dim", *KEY_DIM)
WITH_HEADS = {"query", "key", "value", "nope", "rope", "narrow query", "narrow key"}
KEYS = {"nope": "key", "rope": "key"}  # the parts of a key with and without rotary positions
ONE_HEAD = {"SwiftFormerEfficientAdditiveAttention"}  # attention without heads; no attribute says so


class Part(NamedTuple):
    """Consecutive rows of one role, and how many of them share a block at granularities `paper` and `coarse`."""

    role: str  # query, key, value, projection, gate, latent, mlp, ...
    rows: int
    paper: int
    coarse: int


class Parts(NamedTuple):
    """The rows of a layer: the same parts, `repeats` times."""

    repeats: int
    parts: tuple[Part, ...]


class Heads(NamedTuple):
    """Number of heads and their widths; 0 if unknown."""

    queries: int
    keys: int
    values: int
    query_dim: int
    key_dim: int
    value_dim: int


def one_part(role: str, rows: int) -> Parts:
    """Return rows that are one block each, or, in `coarse` and if their role is known, one block together."""
    return Parts(1, (Part(role, rows, 1, 1 if role == "unknown" else rows),))


def parts_of(role: Role, lineage: Sequence[nn.Module], rows: int) -> Parts | None:
    """Return the parts of a layer's `rows`; None if the number of heads is unknown or does not fit."""
    if not WITH_HEADS & set(role.parts):
        return one_part(role.parts[0], rows) if len(role.parts) == 1 else None
    heads = _heads(lineage)
    if len(role.parts) == 1:
        part = _read_single(role.parts[0], heads, rows)
        return Parts(1, (part,)) if part else None
    return _read_fused(role, heads, lineage, rows)


def _read_single(name: str, heads: Heads, rows: int) -> Part | None:
    """Return the rows of a layer that has only queries, keys or values."""
    count, dim = {
        "query": (heads.queries, heads.query_dim),
        "key": (heads.keys, heads.key_dim),
        "value": (heads.values, heads.value_dim),
        "narrow query": (heads.queries, 0),  # the width of these heads is not an attribute
        "narrow key": (heads.keys, 0),
    }[name]
    name = name.removeprefix("narrow ")
    dim = dim or (rows // count if count else 0)
    if not dim:
        return Part(name, rows, 1, 1) if name == "value" else None
    if name == "value":
        return Part(name, rows, 1, dim if rows % dim == 0 else 1)
    fitting = {count or rows // dim, *((heads.queries, 1) if name == "key" else ())}  # keys may be shared by all heads
    return Part(name, rows, dim, dim) if rows in {number * dim for number in fitting} else None


def _read_fused(role: Role, heads: Heads, lineage: Sequence[nn.Module], rows: int) -> Parts | None:
    """Return the rows of a layer with several parts side by side; values, gates and latents share the other rows."""
    repeats = {"once": 1, "a head": heads.queries, "a key head": heads.keys}.get(role.repeats) or role.number
    if not repeats or rows % repeats:
        return None
    by_head = _by_head(role, heads, lineage, rows)  # (heads in all, rows a head)
    sizes = {name: math.prod(by_head[name]) // repeats for name in role.parts if name in by_head}
    each, remainder = divmod(rows // repeats - sum(sizes.values()), len(role.parts) - len(sizes))
    values = heads.values * heads.value_dim
    wrong = role.repeats == "once" and "value" in role.parts and values not in (0, each)
    if remainder or wrong or each < 1 or not all(sizes.values()):
        return None
    dim = heads.value_dim or each // max(1, heads.values // repeats)
    blocks = {name: (by_head[name][1],) * 2 for name in sizes} | {"value": (1, each if each % dim else dim)}
    parts = (Part(KEYS.get(name, name), sizes.get(name, each), *blocks.get(name, (1, each))) for name in role.parts)
    return Parts(repeats, tuple(parts))


def _by_head(role: Role, heads: Heads, lineage: Sequence[nn.Module], rows: int) -> dict[str, tuple[int, int]]:
    """Return the number of heads, and rows per head, of the parts that are cut by heads."""
    keys = heads.queries if role.repeats == "a head" else heads.keys
    number = heads.queries + heads.keys + heads.values
    even = rows // number if number and set(role.parts) == {"query", "key", "value"} and not heads.query_dim else 0
    return {
        "query": (heads.queries, even or heads.query_dim),
        "key": (keys, even or heads.key_dim),
        "nope": (heads.queries, nearest(lineage, ("qk_nope_head_dim",))),
        "rope": (1, nearest(lineage, ("qk_rope_head_dim",))),  # all heads share it
    }


def _heads(lineage: Sequence[nn.Module]) -> Heads:
    """Read the heads from the modules above a layer or their configurations; the nearest takes precedence."""
    one = any(type(module).__name__ in ONE_HEAD for module in lineage)
    queries = 1 if one else nearest(lineage, HEADS)
    keys = _key_heads(lineage) or queries
    values = nearest(lineage[-2:], ("num_v_heads",)) or keys
    return Heads(
        queries, keys, values, nearest(lineage, QUERY_DIM), nearest(lineage, KEY_DIM), nearest(lineage, VALUE_DIM)
    )


def _key_heads(lineage: Sequence[nn.Module]) -> int:
    """Read the number of key heads from the module that has heads, or its configuration; 0 if as many as queries."""
    if any(isinstance(module, nn.MultiheadAttention) for module in lineage):
        return 0
    places = [place for place in _places(lineage) if _first(place, (*HEADS, *KEY_HEADS))]
    configurations = [place for place in places if not isinstance(place, nn.Module)]
    in_module = _first(places[0], KEY_HEADS) if places and isinstance(places[0], nn.Module) else 0
    groups = nearest(lineage, ("num_key_value_groups",))  # may differ between layers
    in_configuration = _first(configurations[0], KEY_HEADS) if configurations else 0
    return in_module or (nearest(lineage, HEADS) // groups if groups else in_configuration)


def nearest(lineage: Sequence[nn.Module], names: Sequence[str]) -> int:
    """Return the first positive integer among attributes `names` of the nearest module or configuration, else 0."""
    return next((number for place in _places(lineage) if (number := _first(place, names))), 0)


def _first(place: object, names: Sequence[str]) -> int:
    """Return the first positive integer among attributes `names` of `place`, else 0."""
    return next((number for name in names if (number := _number(place, name))), 0)


def _number(place: object, name: str) -> int:
    try:
        value = getattr(place, name, None)
    except RuntimeError:  # transformers raises it for a configuration whose layers differ
        return 0
    return value if isinstance(value, int) and value > 0 else 0


def _places(lineage: Sequence[nn.Module]) -> Iterator[object]:
    """Yield the modules above a parameter, nearest first, each followed by its configuration."""
    for module in reversed(lineage):
        yield module
        config = getattr(module, "config", None)
        if config is not None:
            yield config
