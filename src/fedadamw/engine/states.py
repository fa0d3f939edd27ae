"""States of algorithms: NamedTuples of tensors and of such tuples, or ()."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


def map_tensors(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The state with `change` applied to every tensor."""
    if isinstance(state, Tensor):
        return change(state)
    return type(state)(*(map_tensors(field, change) for field in state)) if state != () else state


def clone_tensors(state: Any) -> Any:
    """The state with copies of its tensors, which may be changed in place."""
    return map_tensors(state, torch.clone)


def iterate_tensors(state: Any) -> Iterator[Tensor]:
    """Yield the tensors of a state, depth first."""
    for field in state:
        if isinstance(field, Tensor):
            yield field
        else:
            yield from iterate_tensors(field)


def stack_states(states: Sequence[Any]) -> Any:
    """One state whose tensors are those of `states`, stacked on a new first axis."""
    first = states[0]
    if isinstance(first, Tensor):
        return torch.stack(list(states))
    return type(first)(*(stack_states(fields) for fields in zip(*states, strict=True))) if first != () else first
