"""Curvature times a vector: products with the Hessian and with the Gauss-Newton matrix, without either matrix.

Both are of the mean loss over some samples and of the trainable parameters, (d, d). The Gauss-Newton matrix is
sum J_i^T H_i J_i / n, with the Jacobian J_i of a sample's outputs and the Hessian H_i of its loss in these: for
classes diag p - p p^T.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedadamw.task import Batch
from fedadamw.theory.curvature.subject import Subject, predict, predicts_numbers
from fedadamw.vector import Vector, trainable


class Product(Protocol):
    """A symmetric matrix as a function: its product with a vector (d,)."""

    def __call__(self, v: Vector) -> Vector:
        """Return the matrix times `v`."""


@contextmanager
def differentiable_twice() -> Iterator[None]:
    """A context in which attention can be differentiated twice: torch's fused kernels cannot."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def hessian_product(subject: Subject, batches: Sequence[Batch]) -> Product:
    """Return the Hessian of the mean loss over all samples of `batches`."""
    parameters = list(trainable(subject.model).values())
    total = sum(len(batch[0]) for batch in batches)

    def times(v: Vector) -> Vector:
        product = torch.zeros_like(v)
        for batch in batches:
            with differentiable_twice():
                loss = subject.task.losses(subject.model, batch).sum() / total
                gradient = _flat_gradient(loss, parameters, keep=True)
                product += _flat_gradient(gradient @ v, parameters)
        return product

    return times


def gauss_newton_product(subject: Subject, batches: Sequence[Batch]) -> Product:
    """Return the Gauss-Newton matrix of the mean loss over all samples of `batches`."""
    parameters = list(trainable(subject.model).values())
    total, numbers = sum(len(batch[0]) for batch in batches), predicts_numbers(subject.task)

    def times(v: Vector) -> Vector:
        product = torch.zeros_like(v)
        for batch in batches:
            with differentiable_twice():
                z = predict(subject.task, subject.model, batch)
                u = torch.zeros_like(z, requires_grad=True)
                back = _flat_gradient((z * u).sum(), parameters, keep=True)  # J^T u, linear in u
                (dz,) = torch.autograd.grad(back @ v, u, retain_graph=True)  # so this is J v
                upward = _times_output_hessian(z.detach(), dz, numbers=numbers) / total
                product += _flat_gradient((z * upward).sum(), parameters)
        return product

    return times


def _flat_gradient(value: Tensor, parameters: Sequence[Tensor], *, keep: bool = False) -> Vector:
    """Return the gradient of a number, (d,); keep: it can be differentiated again."""
    found = torch.autograd.grad(value, parameters, create_graph=keep, materialize_grads=True)
    return torch.cat([t.reshape(-1) for t in found])


def with_parameters(subject: Subject, values: dict[str, Tensor]) -> Any:
    """Return the model as a function, with other values of these parameters."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return functional_call(subject.model, values, args, kwargs)

    return call


def _times_output_hessian(z: Tensor, dz: Tensor, *, numbers: bool) -> Tensor:
    """Return the Hessian of each sample's loss in its outputs z (n, c), times dz (n, c)."""
    if numbers:
        return 2 * dz
    p = z.softmax(-1)
    return p * dz - p * (p * dz).sum(-1, keepdim=True)


def root_of_output_hessian(z: Tensor, *, numbers: bool) -> Tensor:
    """Return A (..., c, c), with A^T A the Hessian of a sample's loss in its outputs z (..., c).

    For classes A = diag(sqrt p) - sqrt(p) p^T.
    """
    if numbers:
        return torch.full((*z.shape, z.shape[-1]), 2**0.5, dtype=z.dtype, device=z.device)
    p = z.softmax(-1)
    root = p.sqrt()
    return torch.diag_embed(root) - root.unsqueeze(-1) * p.unsqueeze(-2)
