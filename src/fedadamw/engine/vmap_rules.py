"""Batching rules for operations that vmap has none for: it would run client by client, or fail.

Attention uses torch's fused kernels, with the client axis folded into the batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

torch_attention = F.scaled_dot_product_attention
torch_pool = F.adaptive_avg_pool1d
torch_layer_norm = F.layer_norm


@contextmanager
def batched_kernels() -> Iterator[None]:
    """A context in which these operations run once for all stacked clients.

    It replaces the functions by name: a torch function mode does not see what nn.MultiheadAttention calls.
    """
    F.scaled_dot_product_attention, F.adaptive_avg_pool1d = _attention, _pool
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.adaptive_avg_pool1d = torch_attention, torch_pool


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """A context in which such operations may be differentiated under vmap: attention by its formula."""
    F.adaptive_avg_pool1d, F.layer_norm, F.scaled_dot_product_attention = _pool, _layer_norm, _attention_by_formula
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        F.adaptive_avg_pool1d, F.layer_norm = torch_pool, torch_layer_norm
        F.scaled_dot_product_attention = torch_attention


def _layer_norm(
    input: Tensor,  # noqa: A002  (torch's name)
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """The plain call; in autocast an input of half precision is computed in the type of the weight, as there."""
    own = input if weight is None else input.to(weight.dtype)
    return torch_layer_norm(own, list(normalized_shape), weight, bias, eps).to(input.dtype)


def _pool(input: Tensor, output_size: Any) -> Tensor:  # noqa: A002  (torch's name)
    single: bool = output_size in (1, (1,), [1])
    return input.mean(-1, keepdim=True) if single else torch_pool(input, output_size)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002  (torch's signature)
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002
) -> Tensor:
    settings = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
    out: Tensor = _FoldedAttention.apply(query, key, value, attn_mask, settings)  # type: ignore[no-untyped-call]
    return out


def _attention_by_formula(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002  (torch's signature)
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002
) -> Tensor:
    """The plain call; with dropout step by step, since torch's own drops nothing inside of two vmaps."""
    if not dropout_p:
        return torch_attention(
            query, key, value, attn_mask=attn_mask, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if is_bool else scores + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p) @ value


class _FoldedAttention(torch.autograd.Function):
    """The plain call, with a rule for vmap; autograd sees the plain call inside that rule."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, settings: dict[str, Any]) -> Tensor:
        return torch_attention(query, key, value, attn_mask=mask, **settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Saves nothing: autograd differentiates the call inside the vmap rule."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Sequence[int | None],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        settings: dict[str, Any],
    ) -> tuple[Tensor, int]:
        """One call on (clients * batch, heads, length, width)."""
        s = info.batch_size
        query, key, value = (
            _first(t, dim, s).flatten(0, 1) for t, dim in zip((query, key, value), in_dims, strict=False)
        )
        if mask is not None:
            mask = _first(mask, in_dims[3], s)  # (clients, ..., lengths)
            while mask.dim() < 5:
                mask = mask.unsqueeze(1)
            mask = mask.expand(s, query.shape[0] // s, *mask.shape[2:]).flatten(0, 1)
        out = torch_attention(query, key, value, attn_mask=mask, **settings)
        return out.unflatten(0, (s, -1)), 0


def _first(t: Tensor, dim: int | None, s: int) -> Tensor:
    """`t` with its client axis first."""
    return t.expand(s, *t.shape) if dim is None else t.movedim(dim, 0)
