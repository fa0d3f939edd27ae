"""Gradient checkpointing for stacked clients: torch's own does not know the client axis when it computes a layer again.

So the whole stack of a layer's calls is computed again: vmap inside the checkpoint, not around it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.checkpoint import checkpoint

from fedadamw.engine.vmap_rules import batched_kernels

CALL = "_gradient_checkpointing_func"  # by which transformers' layers call torch's checkpoint
ON = "gradient_checkpointing"


@contextmanager
def stacked_checkpoints(module: nn.Module) -> Iterator[None]:
    """A context in which the checkpointed layers of `module` may be called under vmap."""
    layers: list[Any] = [m for m in module.modules() if getattr(m, ON, False) and hasattr(m, CALL)]
    before = [getattr(layer, CALL) for layer in layers]
    for layer in layers:
        setattr(layer, CALL, _Call(layer))
    try:
        yield
    finally:
        for layer, call in zip(layers, before, strict=True):
            setattr(layer, CALL, call)


class _Call:
    """Calls one layer so that backward calls it again, for all stacked clients."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, function: Any, *args: Any) -> Any:
        """Return what the layer returns; `function` is its forward with keyword arguments bound."""
        state = dict(self.layer.named_parameters()), dict(self.layer.named_buffers())
        leaves, form = tree_flatten((state, args, function.keywords))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        others = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]

        def run(*tensors: Tensor) -> Any:
            given = iter(tensors)
            every = [next(given) if other is None else other[0] for other in others]
            state, args, settings = tree_unflatten(every, form)
            with _switched_off(self.layer):
                return functional_call(self.layer, state, args, settings)

        return _Again.apply(run, *tensors)  # type: ignore[no-untyped-call]


@contextmanager
def _switched_off(layer: Any) -> Iterator[None]:
    setattr(layer, ON, False)
    try:
        yield
    finally:
        setattr(layer, ON, True)


class _Again(torch.autograd.Function):
    """The plain call, with a rule for vmap in which autograd sees a checkpoint of all clients' calls."""

    @staticmethod
    def forward(run: Callable[..., Any], *tensors: Tensor) -> Any:
        return run(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Saves nothing: autograd differentiates the call inside the vmap rule."""

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], run: Callable[..., Any], *tensors: Tensor) -> tuple[Any, Any]:
        """One checkpoint of the layer's calls for every client."""

        def every(*tensors: Tensor) -> Any:
            with batched_kernels():
                return vmap(run, in_dims=tuple(in_dims[1:]), randomness="different")(*tensors)

        out = checkpoint(every, *tensors, use_reentrant=False)
        return out, tree_map(lambda _: 0, out)
