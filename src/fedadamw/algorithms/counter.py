"""How many gradients a carried moment counts for, exactly where clients take unequal numbers of steps.

A moment that began at zero is debiased by 1 - beta^t, t being its gradients. Of clients that begin at t and take K
steps each, the mean moment is debiased by the mean of 1 - beta^(t + K), and counts for what that stands for:

    client:  send q = beta^(t + K)                   the weight that the zero still has in its moment
    server:  t = ln(mean q) / ln beta

which is t + K if all are equal, and less than its mean if not. There is a q for each carried moment, and so a t, since
betas differ. q is float64: in float32, 1 - q has five digits for small t, and for large t there is no q below 1e-38.
"""

import math
from collections import namedtuple
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

Q = "q"  # the field of an upload, its last
EQUAL = 1e-12  # share of q by which it may differ from that of equal steps by rounding
SMALLEST = torch.finfo(torch.float64).tiny  # of q; a moment whose zero weighs less is unbiased


def find_q(t: Tensor, betas: Sequence[float]) -> Tensor:
    """Return q (..., c) of moments of `t` (..., 1) or (..., c) gradients that decay by `betas` (c)."""
    steps = t.double().expand(*t.shape[:-1], len(betas)).unbind(-1)
    return torch.stack([_power(beta, own) for beta, own in zip(betas, steps, strict=True)], -1)


def count_gradients(q: Tensor, t: Tensor, betas: Sequence[float]) -> Tensor:
    """Return the number of gradients (c,) of moments whose mean q (c,) is given, of the type of `t`.

    t: (1,) or (c,), the same with the mean number of steps. It is returned as it is where q is that of `t` up to
    rounding: then clients took equal numbers of steps.
    """
    own = q.clamp(min=SMALLEST).unbind(-1)
    found = torch.stack([_root(beta, weight) for beta, weight in zip(betas, own, strict=True)], -1)
    equal = (q - find_q(t, betas)).abs() <= EQUAL * q
    return torch.where(equal, t, found.to(t))


def with_q(up: Any, q: Tensor) -> Any:
    """Return an upload with the field `q` (..., c) behind its others."""
    return _upload_type((*up._fields, Q))(*up, q)


@cache
def _upload_type(names: tuple[str, ...]) -> type[Any]:
    """The type of an upload with these fields."""
    return namedtuple("CountedUp", names)


def _power(beta: float, steps: Tensor) -> Tensor:
    return torch.exp(steps * math.log(beta)) if beta else torch.zeros_like(steps)


def _root(beta: float, weight: Tensor) -> Tensor:
    """Return ln weight / ln beta; without memory, beta = 0, a moment is of one gradient."""
    return weight.log() / math.log(beta) if beta else torch.ones_like(weight)
