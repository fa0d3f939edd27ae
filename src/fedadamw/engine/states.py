"""States of algorithms: NamedTuples of tensors and of such tuples, or ()."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fedadamw.algorithm import AnyState


def map_tensors(state: AnyState, change: Callable[[Tensor], Tensor]) -> AnyState:
    """The state with `change` applied to every tensor."""
    if not isinstance(state, tuple):
        return change(state)
    return type(state)(*(map_tensors(field, change) for field in state)) if state != () else state


def clone_tensors(state: AnyState) -> AnyState:
    """The state with copies of its tensors, which may be changed in place."""
    return map_tensors(state, torch.clone)


def iterate_tensors(state: AnyState) -> Iterator[Tensor]:
    """Yield the tensors of a state, depth first."""
    for field in state:
        if isinstance(field, Tensor):
            yield field
        else:
            yield from iterate_tensors(field)


def stack_states(states: Sequence[AnyState]) -> AnyState:
    """One state whose tensors are those of `states`, stacked on a new first axis."""
    first = states[0]
    if isinstance(first, Tensor):
        return torch.stack(list(states))
    return type(first)(*(stack_states(fields) for fields in zip(*states, strict=True))) if first != () else first
