"""How many bytes a model's weights take, from its shapes alone: counted on a skeleton, without weights."""

from typing import NamedTuple

import torch
from torch import nn

from fedadamw.models.dtypes import Quantize
from fedadamw.models.quantized import BLOCK, linear_layers

SCALES = 256  # scales that share a scale of their own: double quantisation
TABLES = 4 * 16 + 4 * 256 + 4  # bytes of a 4-bit layer's values of 4 and 8 bits, and its scales' mean


class BaseBytes(NamedTuple):
    """Bytes of a model's weights by kind."""

    linear: int  # weights of linear layers but the output's, or those of them that are quantised
    scales: int  # of quantised weights
    embeddings: int  # tables of tokens and positions, and the output layer, a tied one once
    rest: int  # norms, biases, convolutions, heads

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


def bytes_of_base(model: nn.Module, dtype: torch.dtype, quantize: Quantize = "none") -> BaseBytes:
    """Return the bytes of the weights of `model`, also on the meta device, in `dtype` and quantised as `quantize`."""
    layers = [layer for _, layer in linear_layers(model, quantize)]
    linear = {id(layer.weight): layer.weight.numel() for layer in layers}
    rows = [layer.weight.shape[0] for layer in layers]
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    tables |= set() if output is None else {id(output.weight)}
    size = dtype.itemsize
    embeddings = sum(p.numel() for p in model.parameters() if id(p) in tables) * size
    rest = sum(p.numel() for p in model.parameters() if id(p) not in tables and id(p) not in linear) * size
    counts = list(linear.values())
    if quantize == "4bit":
        return BaseBytes(sum(-(-n // 2) for n in counts), sum(map(_scale_bytes, counts)), embeddings, rest)
    if quantize == "8bit":
        return BaseBytes(sum(counts), 4 * sum(rows), embeddings, rest)
    return BaseBytes(sum(counts) * size, 0, embeddings, rest)


def _scale_bytes(count: int) -> int:
    """Bytes of the doubly quantised scales of a 4-bit weight of `count` numbers."""
    blocks = -(-count // BLOCK)
    return blocks + 4 * -(-blocks // SCALES) + TABLES
