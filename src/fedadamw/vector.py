"""A module's trainable parameters as one flat vector, and back: the only module that knows offsets."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn

from fedadamw.validation import check

LARGEST_PLAUSIBLE = 1e15  # a larger number in a model is an error; squares and sums over clients stay finite
Vector = Tensor  # (..., d): the d trainable numbers of a model; a leading axis, if any, is clients


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors in one flat vector, in order.

    Frozen weights, which are never sent, are not in it; tied weights are in it once.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @staticmethod
    def of(module: nn.Module) -> "Layout":
        """Return the layout of the trainable parameters of `module`; raises InputError if one is complex."""
        parameters = trainable(module)
        for name, p in parameters.items():
            check(not p.is_complex(), f"{name!r} is complex: make it a real parameter (..., 2), see torch.view_as_real")
        return Layout.of_tensors(parameters)

    @staticmethod
    def of_tensors(tensors: Mapping[str, Tensor]) -> "Layout":
        """Return the layout of named tensors, in the order of the mapping."""
        return Layout(tuple(tensors), tuple(t.shape for t in tensors.values()))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of elements of each tensor."""
        return tuple(shape.numel() for shape in self.shapes)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Start of each tensor in the vector, and last the length d of the vector."""
        return tuple(accumulate(self.sizes, initial=0))

    @property
    def d(self) -> int:
        """The length of the vector."""
        return self.offsets[-1]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of names and shapes; models with the same one can exchange vectors."""
        text = "\n".join(f"{n} {tuple(s)}" for n, s in zip(self.names, self.shapes, strict=True))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def views(self, vector: Vector) -> dict[str, Tensor]:
        """Return views of `vector` (..., d) by name, each (..., *shape); writing to one writes to the vector."""
        lead = vector.shape[:-1]
        parts = vector.split(self.sizes, dim=-1)
        return {name: part.view(lead + shape) for name, shape, part in zip(self.names, self.shapes, parts, strict=True)}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Vector:
        """Return a new vector (d,) with a copy of the named tensors."""
        if not self.names:
            return torch.zeros(0)
        return torch.cat([tensors[name].detach().reshape(-1) for name in self.names])

    def norms(self, vector: Vector) -> Tensor:
        """Return the Euclidean norm of each tensor in `vector` (..., d), as (..., tensors)."""
        parts = vector.split(self.sizes, dim=-1)
        return torch.stack([torch.linalg.vector_norm(part, dim=-1) for part in parts], dim=-1)

    def expand(self, numbers: Tensor) -> Vector:
        """Return a vector (..., d) in which each coordinate has the value of its tensor in `numbers` (..., tensors)."""
        parts = [
            number.unsqueeze(-1).expand(*number.shape, n)
            for number, n in zip(numbers.unbind(-1), self.sizes, strict=True)
        ]
        return torch.cat(parts, -1)

    def name_at(self, position: int) -> str:
        """Return the name of the tensor that holds coordinate `position` of the vector."""
        return next(n for n, end in zip(self.names, self.offsets[1:], strict=True) if position < end)

    def difference(self, other: "Layout") -> str | None:
        """Describe the first tensor in which `other` differs from this layout; None if they agree."""
        shapes = dict(zip(self.names, self.shapes, strict=True))
        others = dict(zip(other.names, other.shapes, strict=True))
        for name, shape in shapes.items():
            if name not in others:
                return f"{name!r} is missing"
            if others[name] != shape:
                return f"{name!r} has shape {tuple(others[name])} instead of {tuple(shape)}"
        extra = next((name for name in others if name not in shapes), None)
        if extra is not None:
            return f"{extra!r} is not in this model"
        return None if self.names == other.names else "the parameters are in another order"


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of `module` that require gradients, by name; a tied one once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def statistics(module: nn.Module) -> dict[str, Tensor]:
    """Return the floating-point buffers in the state of `module` (BatchNorm's running statistics), by name.

    A buffer that contains -inf or NaN is a constant, such as a mask, and is left out: it has no mean.
    """
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    state = module.state_dict(keep_vars=True)
    buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}  # not the scales of quantised weights
    floating = {n: t for n, t in state.items() if n in buffers and n not in parameters and t.is_floating_point()}
    return {n: t for n, t in floating.items() if bool(t.float().isfinite().all())}


def bind(tensors: Mapping[str, Tensor], vector: Vector) -> None:
    """Make each named tensor a view into `vector` (d,), without a copy: writing to the vector writes to all."""
    views = Layout.of_tensors(tensors).views(vector)
    for name, tensor in tensors.items():
        tensor.data = views[name]


def bind_gradients(parameters: Mapping[str, nn.Parameter], gradient: Vector) -> None:
    """Make each parameter's `.grad` a view into `gradient` (d,), in which backward then accumulates."""
    views = Layout.of_tensors(parameters).views(gradient)
    for name, parameter in parameters.items():
        parameter.grad = views[name]


def at_least_single(t: Tensor) -> torch.dtype:
    """Return a dtype for sums over rounds: half precision would lose small steps, and counts above 256."""
    return torch.promote_types(t.dtype, torch.float32)


def squared_norm(x: Vector) -> Tensor:
    """Return |x|^2 (..., 1) of vectors (..., d)."""
    return (x * x).sum(-1, keepdim=True)


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the numbers in `tensors`: their cost on the wire without headers."""
    return sum(t.numel() * t.element_size() for t in tensors)


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether every number is finite, in one pass for minimum and maximum; NaN propagates to both.

    One number is read from the device, however many tensors there are: each reading waits for it.
    """
    ends = [end.isfinite() for t in tensors if t.numel() for end in torch.aminmax(t)]
    return not ends or bool(torch.stack(ends).all())
