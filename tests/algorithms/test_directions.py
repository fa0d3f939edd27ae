"""The direction rules by themselves: what their papers promise of one step."""

import pytest
import torch

from fedadamw.directions.lamb import lamb
from fedadamw.directions.lion import lion
from fedadamw.directions.muon import muon, orthogonalize
from fedadamw.directions.sketch import Sketch, decode, encode
from fedadamw.vector import Layout


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (3, 2, 5, 7)])
def test_orthogonal_keeps_singular_vectors_and_brings_singular_values_near_one(shape):
    matrices = random(*shape)
    found = orthogonalize(matrices, 8)
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    values = (u.mT @ found @ vt.mT).diagonal(dim1=-2, dim2=-1)
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.25
    torch.testing.assert_close(u.mT @ found @ vt.mT, torch.diag_embed(values), rtol=0, atol=1e-6)
    assert torch.equal(orthogonalize(torch.zeros(2, 3), 5), torch.zeros(2, 3))


def test_muon_changes_only_the_named_matrices_and_flattens_kernels_to_channels_by_rest():
    layout = Layout(("a", "bias", "kernel"), (torch.Size((2, 3)), torch.Size((4,)), torch.Size((5, 2, 3, 3))))
    u, m = random(layout.d), random(layout.d, seed=1)
    found = layout.views(muon(u, m, layout, ("a", "kernel"), steps=5))
    assert torch.equal(found["bias"], layout.views(u)["bias"])
    own = layout.views(m)
    torch.testing.assert_close(found["a"], 0.2 * 3**0.5 * orthogonalize(own["a"], 5))
    kernel = 0.2 * 18**0.5 * orthogonalize(own["kernel"].reshape(5, 18), 5)
    torch.testing.assert_close(found["kernel"].reshape(5, 18), kernel)


def test_lion_direction_is_a_sign():
    g, m = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([-0.05, 1.0, 0.0])
    u, after = lion(g, m, betas=(0.9, 0.99))
    assert u.tolist() == [1.0, 1.0, 0.0]
    torch.testing.assert_close(after, 0.99 * m + 0.01 * g)


def test_lamb_steps_are_as_long_as_the_weights_of_each_matrix():
    layout = Layout(("w", "zero", "bias"), (torch.Size((2, 3)), torch.Size((2, 2)), torch.Size((3,))))
    u, y = random(layout.d), random(layout.d, seed=1)
    layout.views(y)["zero"].zero_()
    found = layout.views(lamb(u, y, layout, weight_decay=0.1, trust=(0.0, 10.0)))
    plain = layout.views(u + 0.1 * y)
    torch.testing.assert_close(found["w"].norm(), layout.views(y)["w"].norm())
    torch.testing.assert_close(found["w"] / found["w"].norm(), plain["w"] / plain["w"].norm())
    assert torch.equal(found["zero"], plain["zero"])
    assert torch.equal(found["bias"], plain["bias"])
    short = layout.views(lamb(u, 100 * y, layout, weight_decay=0.0, trust=(0.0, 2.0)))
    torch.testing.assert_close(short["w"], 2.0 * layout.views(u)["w"])


def unknown(rows, columns, r):
    """What both sides know before the first message."""
    return Sketch(*(torch.zeros(n, r, dtype=torch.float64) for n in (rows, columns, rows, columns)))


def test_mean_of_sketches_is_the_sketch_of_the_mean_and_errors_never_exceed_the_matrix():
    known = decode(*encode(random(7, 5), unknown(7, 5, 2)), unknown(7, 5, 2))
    first, second = random(7, 5, seed=1), random(7, 5, seed=2)
    mean = [(a + b) / 2 for a, b in zip(encode(first, known), encode(second, known), strict=True)]
    for a, b in zip(mean, encode((first + second) / 2, known), strict=True):
        torch.testing.assert_close(a, b)
    for seed in range(20):
        matrix = random(7, 5, seed=seed)
        found = decode(*encode(matrix, known), known).matrix()
        assert float((found - matrix).norm()) <= float(matrix.norm())


def test_repeated_sketches_find_the_largest_singular_values():
    u, _, vt = torch.linalg.svd(random(20, 12), full_matrices=False)
    values = torch.tensor([8.0, 4.0, *[0.3] * 10], dtype=torch.float64)
    matrix = u * values @ vt
    known = unknown(20, 12, 2)
    for _ in range(6):
        known = decode(*encode(matrix, known), known)
    best = float(values[2:].norm())  # of any matrix of rank 2
    assert float((known.matrix() - matrix).norm()) < 1.05 * best
    low = u[:, :2] * values[:2] @ vt[:2]
    for _ in range(6):
        known = decode(*encode(low, known), known)
    torch.testing.assert_close(known.matrix(), low)
