"""The local step without a compiler, in about one pass over memory, by torch's fused kernels.

But for its direction, a local step is linear: y - lr (u + alpha Delta_G + lambda y). So the algorithm's own function is
called with sums instead of vectors (sums.py). What it returns says how each vector of `local` changes; that is done in
place, in chunks that stay in the cache, the direction by its form in place.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from torch import Tensor

from fedadamw.algorithm import AnyAlgorithm, AnyState
from fedadamw.engine.states import iterate_tensors, map_tensors
from fedadamw.engine.sums import After, Direction, Known, NotLinearError, Sum
from fedadamw.vector import Vector


class FusedStep:
    """step(local, down, g, lr): by torch's fused kernels, row by row if clients are stacked.

    clip: returns the factors (..., 1) of `g`, or None for 1. plain: takes the steps that cannot be recorded, and those
    on other devices than a CPU, where numbers would have to be waited for.
    """

    def __init__(
        self, algorithm: AnyAlgorithm, clip: Callable[[Vector], Tensor | None], plain: Callable[..., None]
    ) -> None:
        self._algorithm, self._clip, self._plain = algorithm, clip, plain
        self._can_record = algorithm.elementwise

    def __call__(self, local: AnyState, down: AnyState, g: Vector, lr: Tensor) -> None:
        records = self._record_rows(local, down, g, lr) if self._can_record and g.device.type == "cpu" else None
        if records is None:
            self._plain(local, down, g, lr)
            return
        for changes, counters in records:
            carry_out(changes)
            for old, new in counters:
                old.copy_(new)

    def _record_rows(self, local: AnyState, down: AnyState, g: Vector, lr: Tensor) -> "list[Record] | None":
        scale = self._clip(g)
        scales = [1.0] * g[..., :1].numel() if scale is None else scale.flatten().tolist()
        rows = [(local, g)] if g.dim() == 1 else [(map_tensors(local, itemgetter(i)), g[i]) for i in range(len(g))]
        try:
            return [
                record(self._algorithm, row, down, g_row, scale, lr)
                for (row, g_row), scale in zip(rows, scales, strict=True)
            ]
        except Exception:  # not only sums; if it is wrong altogether, the plain step says so
            self._can_record = False
            return None


@dataclass(frozen=True)
class Change:
    """What becomes of one vector: the sum, evaluated in place."""

    target: Known
    shift: float  # of the vector itself: its coefficient - 1
    direction: tuple[Direction, float] | None
    others: Sequence[tuple[Known, float]]

    @staticmethod
    def of(target: Known, new: Sum) -> "Change":
        """The change of `target` into `new`."""
        terms = dict(new.terms)
        shift = terms.pop(target, 0.0) - 1.0
        directions = [(term, number) for term, number in terms.items() if isinstance(term, Direction)]
        others = [(term, number) for term, number in terms.items() if isinstance(term, Known)]
        if len(directions) > 1 or shift == -1.0:
            raise NotLinearError("two directions in a sum, or a vector that is replaced")
        if directions and directions[0][0].g.is_only(target):
            raise NotLinearError("a direction for the vector that moves along it")
        return Change(target, shift, directions[0] if directions else None, others)

    @property
    def reads(self) -> set[Known]:
        """The vectors that it needs as they were."""
        of_direction = [] if self.direction is None else self.direction[0].g.terms
        return {term for term in (*dict(self.others), *of_direction) if isinstance(term, Known)}

    def carry_out(self, i: int) -> None:
        """Change chunk `i` of the target."""
        y = self.target.chunks[i]
        g = None if self.direction is None else _evaluate(self.direction[0].g, i)
        if self.shift:
            y.add_(y, alpha=self.shift)  # not y * (1 + shift): lr * lambda would lose its digits to the 1
        if self.direction is not None:
            direction, number = self.direction
            direction.step(y, g, *(moment.chunks[i] for moment in direction.moments), lr=-number)
        for vector, number in self.others:
            y.add_(vector.chunks[i], alpha=number)


def _evaluate(total: Sum, i: int) -> Vector:
    """Chunk `i` of a sum of known vectors: a view if it is one of them itself."""
    (first, number), *rest = (
        (term.chunks[i], number) for term, number in total.terms.items() if isinstance(term, Known)
    )
    out = first if number == 1.0 and not rest else first * number
    for chunk, number in rest:
        out.add_(chunk, alpha=number)
    return out


Record = tuple[list[Change], list[tuple[Tensor, Tensor]]]  # changes of vectors; (old, new) of counters


def record(algorithm: AnyAlgorithm, local: AnyState, down: AnyState, g: Vector, scale: float, lr: Tensor) -> "Record":
    """Call the algorithm's step on sums; return the changes of its vectors, and (old, new) of its other tensors.

    g: (d,), to be multiplied by `scale`. Raises NotLinearError if the step is not linear or its changes depend on
    each other, and what the step raises for operations that sums do not have.
    """
    known: dict[int, Known] = {}

    def wrap(t: Tensor) -> Any:
        fits = t.shape == g.shape and t.dtype == g.dtype and t.is_contiguous()
        return Sum({known.setdefault(id(t), Known(t)): 1.0}) if fits else t.clone()  # a counter may change in place

    before = list(iterate_tensors(local))
    after = algorithm.client_step(map_tensors(local, wrap), map_tensors(down, wrap), wrap(g) * scale, lr)
    changes, counters, moved = [], [], set[Known]()
    for old, new in zip(before, _leaves(after), strict=True):
        if isinstance(new, Tensor):
            counters.append((old, new))
        elif isinstance(new, After):
            if new.moment.data is not old:
                raise NotLinearError("moments that change places")
            moved.add(new.moment)
        elif not new.is_only(known[id(old)]):
            changes.append(Change.of(known[id(old)], new))
    _check_independent(changes, moved)
    return changes, counters


def _leaves(state: Any) -> Iterator[Any]:
    for value in state:
        if isinstance(value, tuple):
            yield from _leaves(value)
        else:
            yield value


def _check_independent(changes: Sequence[Change], moved: set[Known]) -> None:
    """Raise NotLinearError if a change needs a vector that another overwrites, or a direction is not used once."""
    used = [change.direction[0] for change in changes if change.direction is not None]
    states = [moment for direction in used for moment in direction.moments]
    if set(states) != moved or len(states) != len(moved):
        raise NotLinearError("a direction that is not used once")
    for change in changes:
        overwritten = {other.target for other in changes if other is not change} | moved
        if change.reads & overwritten:
            raise NotLinearError("changes that depend on each other")


def carry_out(changes: Sequence[Change]) -> None:
    """Change the vectors in place, chunk by chunk."""
    for i in range(len(changes[0].target.chunks) if changes else 0):
        for change in changes:
            change.carry_out(i)
