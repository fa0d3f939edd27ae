"""The arithmetic of a local step, recorded instead of done: sums of vectors, and directions.

A `Sum` stands for a vector in an algorithm's own `client_step`. It can be added and multiplied by numbers, and given to
the functions of `directions/` that have a form in place. Anything else raises NotLinearError, TypeError or
AttributeError.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from fedadamw.directions.adamw import (
    NO_NOISE,
    Moments,
    NoiseInMoments,
    Scales,
    adamw,
    adamw_,
    adamw_with_noise_,
    debias,
)
from fedadamw.directions.lion import lion, lion_
from fedadamw.vector import Vector

CHUNK = 524_288  # coordinates: five vectors of them take 10 MB in float32, of a cache that cores share
SMALLEST_EPS = 1e-25  # scaled by sqrt(1 - beta2), a smaller one may be 0 in float32


class NotLinearError(Exception):
    """The step computes something other than sums of vectors and a direction's step."""


class Unknown:
    """A vector whose numbers are not there: it is not compared, not true or false, and not changed in place."""

    def _refuse(self, *_: object) -> Any:
        raise NotLinearError("a comparison, a truth value or a change in place")

    __eq__ = __ne__ = __bool__ = _refuse
    __iadd__ = __isub__ = __imul__ = __itruediv__ = _refuse
    __hash__ = None  # type: ignore[assignment]


@dataclass(eq=False, frozen=True)
class Known:
    """A vector that the step was given."""

    data: Vector  # (d,)

    @cached_property
    def chunks(self) -> Sequence[Vector]:
        """Views of its chunks, in order."""
        return (self.data,) if len(self.data) <= CHUNK else self.data.split(CHUNK)


@dataclass(eq=False, frozen=True)
class Direction:
    """The direction that a function of `directions/` would return, not computed yet."""

    g: "Sum"  # of known vectors
    moments: tuple[Known, ...]  # that it changes
    step: Callable[..., None]  # step(y, g, *moments, lr=...) does it all in place


@dataclass(eq=False, frozen=True)
class After(Unknown):
    """A moment after the step along a direction."""

    direction: Direction
    moment: Known


@dataclass(eq=False, frozen=True)
class Sum(Unknown):
    """A linear combination of vectors (d,)."""

    terms: Mapping[Known | Direction, float]

    def plus(self, other: "Sum", scale: float = 1.0) -> "Sum":
        """Return self + scale * other."""
        terms = dict(self.terms)
        for term, number in other.terms.items():
            terms[term] = terms.get(term, 0.0) + scale * number
        return Sum(terms)

    def times(self, number: float) -> "Sum":
        """Return number * self."""
        return Sum({term: number * own for term, own in self.terms.items()})

    def is_only(self, vector: Known) -> bool:
        """Whether this is that vector itself."""
        return self.terms.get(vector) == 1.0 and len(self.terms) == 1

    def __add__(self, other: object) -> "Sum":
        return self.plus(_to_sum(other))

    __radd__ = __add__

    def __sub__(self, other: object) -> "Sum":
        return self.plus(_to_sum(other), -1.0)

    def __rsub__(self, other: object) -> "Sum":
        return _to_sum(other).plus(self, -1.0)

    def __mul__(self, other: object) -> "Sum":
        return self.times(_to_number(other))

    __rmul__ = __mul__

    def __truediv__(self, other: object) -> "Sum":
        return self.times(1.0 / _to_number(other))

    def __neg__(self) -> "Sum":
        return self.times(-1.0)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] = {}
    ) -> Any:
        """Handle a torch function of sums, or a direction of the table below."""
        if function in DIRECTIONS:
            return DIRECTIONS[function](*args, **kwargs)
        name = function.__name__.strip("_")
        if kwargs or len(args) != 2 or name not in ("add", "sub", "mul", "rsub", "radd", "rmul"):
            raise NotLinearError(name)
        a, b = reversed(args) if name == "rsub" else args
        if name.endswith("mul"):
            return b * a if isinstance(b, Sum) else a * b
        return _to_sum(a).plus(_to_sum(b), 1.0 if name.endswith("add") else -1.0)


def _to_sum(value: object) -> Sum:
    if not isinstance(value, Sum):
        raise NotLinearError(f"a {type(value).__name__} in a sum of vectors")
    return value


def _to_number(value: object) -> float:
    if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1):
        return float(value)
    raise NotLinearError(f"a product with a {type(value).__name__}")


def _adamw(
    g: Sum,
    moments: Moments,
    m_steps: Tensor,
    v_steps: Tensor,
    *,
    betas: tuple[float, float],
    eps: float,
    noise: NoiseInMoments = NO_NOISE,
) -> tuple[Sum, Moments]:
    """Record `adamw`."""
    if eps < SMALLEST_EPS:
        raise NotLinearError("an eps that becomes 0 in float32 when it is scaled")
    if noise.variance:
        biases = float(debias(betas[0], m_steps)), float(debias(betas[1], v_steps))

        def step(y: Vector, g: Vector, m: Vector, v: Vector, *, lr: float) -> None:
            adamw_with_noise_(y, g, Moments(m, v), biases, noise, betas=betas, eps=eps, lr=lr)
    else:
        scales = Scales.of(m_steps, v_steps, betas=betas, eps=eps)

        def step(y: Vector, g: Vector, m: Vector, v: Vector, *, lr: float) -> None:
            adamw_(y, g, Moments(m, v), scales, betas=betas, lr=lr)

    u, (m, v) = _record(g, moments, step)
    return u, Moments(m, v)


def _lion(g: Sum, m: Sum, *, betas: tuple[float, float]) -> tuple[Sum, After]:
    """Record `lion`."""

    def step(y: Vector, g: Vector, m: Vector, *, lr: float) -> None:
        lion_(y, g, m, betas=betas, lr=lr)

    u, (after,) = _record(g, (m,), step)
    return u, after


def _record(g: Sum, moments: Sequence[Any], step: Callable[..., None]) -> tuple[Sum, list[Any]]:
    if not all(isinstance(term, Known) for term in _to_sum(g).terms):
        raise NotLinearError("a direction of a direction")
    direction = Direction(g, tuple(_to_known(moment) for moment in moments), step)
    return Sum({direction: 1.0}), [After(direction, moment) for moment in direction.moments]


def _to_known(value: object) -> Known:
    terms = _to_sum(value).terms
    (vector,) = terms if len(terms) == 1 else (None,)
    if not isinstance(vector, Known) or terms[vector] != 1.0:
        raise NotLinearError("a moment that is a sum")
    return vector


DIRECTIONS: dict[Callable[..., Any], Callable[..., Any]] = {adamw: _adamw, lion: _lion}
