"""States of algorithms: NamedTuples of tensors, mapped and stacked."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def own(local: Any) -> Any:
    """`local` with tensors of its own, which steps may change."""
    return mapped(local, torch.clone)


def leaves(state: Any) -> Iterator[Tensor]:
    """The tensors of a state: of a NamedTuple of tensors and of such tuples."""
    for field in state:
        if isinstance(field, Tensor):
            yield field
        else:
            yield from leaves(field)


def mapped(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The state with every tensor changed."""
    if isinstance(state, Tensor):
        return change(state)
    return type(state)(*(mapped(field, change) for field in state)) if state != () else state


def stacked(states: Sequence[Any]) -> Any:
    """States with a new first axis: one state of stacked tensors."""
    first = states[0]
    if isinstance(first, Tensor):
        return torch.stack(list(states))
    return type(first)(*(stacked(fields) for fields in zip(*states, strict=True))) if first != () else first
