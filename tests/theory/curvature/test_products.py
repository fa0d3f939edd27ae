"""Products with the Hessian and the Gauss-Newton matrix, and the rows J, against dense matrices in float64."""

import pytest
import torch
from theory.curvature.small_vits import make_subject
from torch.autograd.functional import hessian
from torch.autograd.functional import jacobian as dense_jacobian
from torch.func import functional_call

from fedadamw.theory.curvature.jacobian import jacobian
from fedadamw.theory.curvature.products import (
    differentiable_twice,
    gauss_newton_product,
    hessian_product,
    root_of_output_hessian,
)
from fedadamw.vector import Layout, trainable


@pytest.fixture(scope="module")
def subject():
    return make_subject(classes=3, width=4, heads=2, images=5, mlp=3, dtype=torch.float64)


def batches_of(subject):
    return list(subject.batches(subject.draw(subject.samples), 4))  # of unequal size


def flat_function(subject, function):
    """`function(model)` of the flat vector of parameters."""
    layout = Layout.of(subject.model)

    def call(x):
        return function(lambda *a, **k: functional_call(subject.model, layout.views(x), a, k))

    x = layout.flatten(trainable(subject.model))
    return call, x


def test_a_hessian_product_equals_the_dense_hessian(subject):
    batches = batches_of(subject)

    def loss(model):
        return torch.cat([subject.task.losses(model, batch) for batch in batches]).mean()

    call, x = flat_function(subject, loss)
    with differentiable_twice():
        dense = hessian(call, x)
    assert torch.allclose(dense, dense.T, atol=1e-12)  # that of nested torch.func.jacrev is not symmetric
    v = torch.randn(len(x), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    times = hessian_product(subject, batches)
    found = torch.stack([times(column) for column in v.T], 1)
    assert torch.allclose(found, dense @ v, rtol=1e-8, atol=1e-8 * float((dense @ v).abs().max()))
    assert float(dense.abs().max()) > 0.01


def test_gauss_newton_rows_and_products_equal_the_dense_matrix(subject):
    batches = batches_of(subject)

    def outputs(model):
        return torch.cat([model(images).logits for images, _ in batches])

    call, x = flat_function(subject, outputs)
    with differentiable_twice():
        j = dense_jacobian(call, x)  # (n, c, d)
    p = call(x).softmax(-1).detach()
    of_outputs = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    dense = torch.einsum("nad,nab,nbe->de", j, of_outputs, j) / subject.samples
    seen = []
    rows = jacobian(subject, batches, Layout.of(subject.model).names, seen.append)
    assert torch.allclose(rows.T @ rows / subject.samples, dense, rtol=1e-10, atol=1e-14)
    assert seen[-1] == subject.samples
    v = torch.randn(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(gauss_newton_product(subject, batches)(v), dense @ v, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("numbers", "outputs"), [(False, 4), (True, 1)])
def test_the_root_squared_is_the_losss_hessian_in_the_outputs(numbers, outputs):
    z = torch.randn(outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0.3], dtype=torch.float64) if numbers else torch.tensor(2)
    loss = torch.nn.functional.mse_loss if numbers else torch.nn.functional.cross_entropy
    root = root_of_output_hessian(z, numbers=numbers)
    assert torch.allclose(root.T @ root, hessian(lambda out: loss(out, target), z), atol=1e-12)
