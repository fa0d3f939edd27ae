"""Means of adapters that are exact: the mean of the clients' products B A, which enters the frozen weights."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from fedadamw.models.lora.checks import ADAPTER
from fedadamw.settings.lora import LoraSettings
from fedadamw.validation import check
from fedadamw.vector import Layout, Vector, at_least_single, bind

Kind = Literal["exact", "residual"]


class _Layer(NamedTuple):
    """One adapted layer: the names of its factors, and the frozen weight that they add to."""

    a: str
    b: str
    scaling: float
    transposed: bool  # the weight is (in, out), as in Conv1D
    weight: nn.Parameter


class Folding:
    """Adds to the frozen weights what the clients' adapters, each s B A, have in the mean; x are their own means.

    exact: all of the mean product, so that the next round starts from B = 0 and the mean of the A.
    residual (FedEx-LoRA, arXiv 2410.09432): what the mean product has beyond the product of the means, which stay.
    scale: how much more a client's adapters are scaled than the server's, if they are.
    """

    def __init__(self, model: nn.Module, kind: Kind = "exact", scale: Callable[[int], float] | None = None) -> None:
        self.kind, self._scale = kind, scale
        self._layers = list(_layers(model, kind))
        check(bool(self._layers), f"lora.aggregate={kind!r} needs adapters of linear layers")
        self._layout = Layout.of(model)
        self._named = {layer.a: layer.weight for layer in self._layers}
        self._weights = Layout.of_tensors(self._named)
        flat = self._weights.flatten(self._named)
        self.base: Vector = flat.to(at_least_single(flat))  # (w,) the frozen weights; sums of rounds need precision
        self._bound = flat.dtype == self.base.dtype
        if self._bound:
            bind(self._named, self.base)

    def load(self, base: Vector) -> None:
        """Copy frozen weights (w,) into the module."""
        if self._bound:
            self.base.copy_(base)
            return
        for name, value in self._weights.views(base).items():
            self._named[name].data.copy_(value)

    def product(self, y: Vector, client: int | None = None) -> Vector:
        """Return what the adapters of the models `y` (..., d), of `client` or the server's, add, (..., w)."""
        named = self._layout.views(y)
        scale = 1.0 if client is None or self._scale is None else self._scale(client)
        parts = []
        for layer in self._layers:
            added = (scale * layer.scaling) * (named[layer.b] @ named[layer.a])
            parts.append((added.transpose(-1, -2) if layer.transposed else added).flatten(-2))
        return torch.cat(parts, -1)

    def fold(self, base: Vector, product: Vector, x: Vector) -> tuple[Vector, Vector]:
        """Return the frozen weights (w,) and the model (d,) after a round.

        product: the mean over clients of `product`, (w,). x: the mean of their models, (d,).
        """
        if self.kind == "residual":
            return base + (product - self.product(x)), x
        return base + product, self._reset(x)

    def _reset(self, x: Vector) -> Vector:
        """Return a copy of `x` (d,) with every B set to 0: the adapters then add nothing."""
        reset = x.clone()
        named = self._layout.views(reset)
        for layer in self._layers:
            named[layer.b].zero_()
        return reset


def _layers(model: nn.Module, kind: Kind) -> Iterator[_Layer]:
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            weight: Any = module.get_base_layer().weight
            linear = ADAPTER in module.lora_A and isinstance(module.lora_A[ADAPTER], nn.Linear)
            check(linear, f"lora.aggregate={kind!r} supports linear layers only; {name} is not one")
            a, b = (f"{name}.{factor}.{ADAPTER}.weight" for factor in ("lora_A", "lora_B"))
            yield _Layer(a, b, module.scaling[ADAPTER], bool(getattr(module, "fan_in_fan_out", False)), weight)


def make_folding(
    model: nn.Module, lora: LoraSettings | None, scale: Callable[[int], float] | None = None
) -> Folding | None:
    """Return the folding of lora.aggregate=exact or residual; None for the others, which change no frozen weight."""
    if lora is None or lora.aggregate not in ("exact", "residual"):
        return None
    return Folding(model, lora.aggregate, scale)


def split_factors(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of the A among those of trainable parameters, and of the B: halves that may train in turn."""
    factors = [
        [name for name in names if {f"lora_{letter}", f"lora_embedding_{letter}"} & set(name.split("."))]
        for letter in "AB"
    ]
    return factors[0], factors[1]
