"""Curvature of runs on texts: padded batches, adapters, a language model."""

import pytest
import torch
from support import tiny_models
from support.trained_texts import TARGETS, lora, settings_of

from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.theory.curvature.jacobian import jacobian
from fedadamw.theory.curvature.products import gauss_newton_product
from fedadamw.theory.curvature.spectrum import find_spectrum
from fedadamw.theory.curvature.subject import open_subject
from fedadamw.validation import InputError
from fedadamw.vector import Layout

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def make_subject(tmp_path_factory):
    """make_subject(kind, task): the subject of a new short run on texts."""
    place = tiny_models.folders(tmp_path_factory.mktemp("texts"), TARGETS)

    def make(kind, task):
        folder = RunFolder(tmp_path_factory.mktemp("run") / "run")
        execute(
            load("digits", settings_of(place, kind, task, *lora(kind, "factors"))), folder, resume=False, report=False
        )
        return open_subject(folder.path)

    return make


def test_rows_and_products_agree_for_a_text_classifier(make_subject):
    subject = make_subject("bert", "text")
    batches = list(subject.batches(subject.draw(6), 4))
    names = Layout.of(subject.model).names
    assert all("lora" in name or "classifier" in name for name in names)
    rows = jacobian(subject, batches, names, lambda _: None)
    v = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0))
    expected = rows.T @ (rows @ v) / 6
    found = gauss_newton_product(subject, batches)(v)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert float(expected.abs().max()) > 0


def test_a_language_model_has_a_hessian_only(make_subject):
    subject = make_subject("llama", "causal-lm")
    found = find_spectrum(subject, 3, "hessian", steps=3, probes=1)
    assert len(found.values) == 3
    assert bool(found.values.isfinite().all())
    with pytest.raises(InputError, match="too many outputs"):
        find_spectrum(subject, 3, "gauss-newton", steps=3, probes=1)
