"""Counts the bytes of all live tensors, by what they are for, at the moment when they are most.

It sees every operation of torch, forward and backward, and each storage from the operation that makes it until the
last tensor that uses it is gone. The tensors may be fake ones, without numbers: then nothing is computed, and where
code asks for a number it is 1, and no number is 0. What a kernel allocates inside of one operation is not seen, except
as HIDDEN says.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedadamw.plan.heap import Heap

Parts = Mapping[str, int]  # bytes by what they are for
LOGITS, COPIES, GAPS = "logits and loss", "weights in another type", "gaps in the heap"
COPY = torch.ops.aten._to_copy.default


class _Block(NamedTuple):
    """The memory of a storage."""

    ref: "weakref.ref[Any]"  # kept, so that its callback is called
    part: str
    size: int
    place: int | None  # in the heap


class Meter(TorchDispatchMode):
    """A mode that counts the storages of the tensors that operations return.

    name: what they are for. logits: the last axis of tensors that count as logits, such as the vocabulary's size.
    """

    def __init__(self, name: str, *, logits: int | None = None, heap: Heap | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name, self._logits = name, logits
        self._weights: set[int] = set()
        self._heap = heap
        self._live: dict[int, _Block] = {}
        self.now: Counter[str] = Counter()
        self.total = 0
        self.most: Parts = {}  # at the peak since `restart`
        self.peak = 0
        self.resident = 0  # with the heap's gaps, at their peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        hidden = HIDDEN.get(name) or (None if self._heap is None else HIDDEN_ON_A_CPU.get(name))
        if hidden is not None:
            self._rise(Counter({self.name: hidden(*args)}))
        fake = args and isinstance(args[0], FakeTensor) and args[0].constant is None
        answer = ANSWERS.get(name) if fake else None
        out = func(*args, **(kwargs or {})) if answer is None else answer(*args)
        copied = func is COPY and _key(args[0]) in self._weights
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                self._add(t, copied=copied)
        return out

    def _add(self, t: Tensor, *, copied: bool) -> None:
        """Count the storage of `t`, if it is not counted yet."""
        storage = t.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return
        of_logits = self._logits is not None and t.dim() > 0 and t.shape[-1] == self._logits
        part = COPIES if copied else LOGITS if of_logits else self.name
        place = None if self._heap is None else self._heap.take(size)
        self._live[key] = _Block(weakref.ref(storage, lambda _: self._remove(key)), part, size, place)
        self.now[part] += size
        self.total += size
        self._rise()

    def _remove(self, key: int) -> None:
        _, part, size, place = self._live.pop(key)
        self.now[part] -= size
        self.total -= size
        if self._heap is not None and place is not None:
            self._heap.give_back(place, size)

    def _rise(self, more: Parts | None = None) -> None:
        """Note the present as the peak, with `more`, if it is one."""
        total = self.total + sum((more or {}).values())
        if total > self.peak:
            self.peak, self.most = total, {part: size for part, size in (self.now + Counter(more)).items() if size}
        gaps = 0 if self._heap is None else self._heap.gaps
        self.resident = max(self.resident, total + gaps)

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.resident = 0
        self._rise()

    def watch(self, weights: Iterable[Tensor]) -> None:
        """What converts one of these to another type counts as a copy of weights."""
        self._weights |= {_key(t) for t in weights}

    def count(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count tensors that were there before, for `part`."""
        with self.part(part):
            for t in tensors:
                self._add(t, copied=False)

    def move(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count these tensors for `part` from now on."""
        for t in tensors:
            block = self._live[_key(t)]
            self._live[_key(t)] = block._replace(part=part)
            self.now[block.part] -= block.size
            self.now[part] += block.size

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A block whose new tensors are for `name`."""
        before, self.name = self.name, name
        try:
            yield
        finally:
            self.name = before


def _key(t: Tensor) -> int:
    key: int = t.untyped_storage()._cdata
    return key


def _number(t: Tensor) -> float | int:
    return 1.0 if t.dtype.is_floating_point else 1


def _all_places(t: Tensor) -> Tensor:
    return t.new_empty(t.numel(), t.dim(), dtype=torch.int64)


def _bytes_of_4bit_weight(a: Tensor, packed: Tensor, shape: Sequence[int], *_: object) -> int:
    """Bytes of the dequantised weight, in the type of the activations `a`."""
    return prod(shape) * a.element_size()


def _bytes_of_reordered_weight(a: Tensor, b: Tensor, *_: object) -> int:
    """Bytes of the copy of `b` in its own order that oneDNN multiplies by; MKL, for float32, copies parts of it."""
    return b.numel() * b.element_size() if b.dtype == torch.bfloat16 else 0


ANSWERS: Mapping[str, Callable[..., Any]] = {  # to questions about the numbers of a tensor that has none
    "aten::_local_scalar_dense": _number,
    "aten::allclose": lambda *_: True,
    "aten::nonzero": _all_places,
}
HIDDEN: Mapping[str, Callable[..., int]] = {  # bytes that an operation allocates and frees inside
    "bitsandbytes::gemm_4bit": _bytes_of_4bit_weight,
}
HIDDEN_ON_A_CPU: Mapping[str, Callable[..., int]] = {
    "aten::mm": _bytes_of_reordered_weight,
    "aten::addmm": lambda _, a, b, *__: _bytes_of_reordered_weight(a, b),
}
