"""Eigenvalues exactly and by Lanczos."""

import pytest
import torch
from theory.curvature.small_vits import make_subject

from fedadamw.theory.curvature import spectrum as module
from fedadamw.theory.curvature.inside import measure_curvature
from fedadamw.theory.curvature.lanczos import find_nodes
from fedadamw.theory.curvature.moments import second_moment
from fedadamw.theory.curvature.spectrum import find_spectrum
from fedadamw.validation import InputError


def test_lanczos_with_as_many_steps_as_dimensions_is_exact():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(30, 30, dtype=torch.float64, generator=generator)
    matrix, q = a + a.T, torch.randn(30, dtype=torch.float64, generator=generator)
    values, vectors = torch.linalg.eigh(matrix)
    nodes = find_nodes(lambda v: matrix @ v, q, 30)
    assert torch.allclose(nodes.values, values, rtol=1e-10, atol=1e-10)
    assert torch.allclose(nodes.weights, (vectors.T @ q).square() / q.square().sum(), atol=1e-10)


def test_lanczos_ends_where_the_krylov_space_does():
    matrix = torch.diag(torch.tensor([3.0, 3.0, 1.0, 1.0, 0.0, 0.0], dtype=torch.float64))
    steps = []
    nodes = find_nodes(lambda v: matrix @ v, torch.ones(6, dtype=torch.float64), 6, lambda: steps.append(1))
    assert torch.allclose(nodes.values, torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64), atol=1e-12)
    assert torch.allclose(nodes.weights, torch.full((3,), 1 / 3, dtype=torch.float64))
    assert len(steps) == 3


def test_large_copies_of_an_eigenvalue_do_not_appear_twice():
    """Without orthogonalisation rounding gives copies of the largest eigenvalue in float32."""
    values = torch.cat([torch.linspace(0, 1, 400), torch.tensor([100.0])])
    nodes = find_nodes(lambda v: values * v, torch.randn(401, generator=torch.Generator().manual_seed(0)), 60)
    assert int((nodes.values > 50).sum()) == 1


def test_the_exact_spectrum_and_lanczos_agree(monkeypatch):
    subject = make_subject(classes=3, width=4, heads=2, images=12, dtype=torch.float64)
    exact = find_spectrum(subject, 12, "gauss-newton", steps=1, probes=1)
    assert (exact.method, len(exact.values)) == ("exact", 36)
    monkeypatch.setattr(module, "LIMIT_BYTES", 1)
    about = find_spectrum(subject, 12, "gauss-newton", steps=25, probes=4)
    assert about.method == "lanczos"
    assert torch.isclose(about.values[0], exact.values[0], rtol=1e-6)
    assert abs(about.facts()["trace"] / exact.facts()["trace"] - 1) < 0.4  # of 4 random vectors
    assert abs(float(about.counts.sum()) / about.d - 1) < 1e-9


def test_a_hessian_has_negative_eigenvalues_and_its_own_trace():
    subject = make_subject(classes=3, width=4, heads=2, images=6, dtype=torch.float64)
    found = find_spectrum(subject, 6, "hessian", steps=30, probes=1)
    assert (found.matrix, found.method) == ("hessian", "lanczos")
    assert found.values[-1] < 0 < found.values[0]


@pytest.mark.parametrize(
    "measure",
    [
        lambda subject: find_spectrum(subject, 4, "gauss-newton", steps=2, probes=1),
        lambda subject: find_spectrum(subject, 4, "hessian", steps=2, probes=1),
        lambda subject: measure_curvature(subject, 4),
        lambda subject: second_moment(subject, 2),
    ],
    ids=["exact", "lanczos", "inside", "moments"],
)
def test_a_run_that_diverged_is_refused(measure):
    subject = make_subject(classes=3, width=4, heads=2, images=12, dtype=torch.float32)
    with torch.no_grad():
        for p in subject.model.parameters():
            p.mul_(1e30)
    with pytest.raises(InputError, match="the loss is not finite at these weights: did the run diverge"):
        measure(subject)
