"""Small text models with tokenizers, in float64 where a test asks for it."""

import pytest
from support.adapters import make_place

from fedadamw.prepare import texts


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with small models and reviews."""
    return make_place(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def double(monkeypatch):
    """Text models in float64."""
    build = texts.build_model

    def build_model(*arguments, **settings):
        built = build(*arguments, **settings)
        return built._replace(model=built.model.double())

    monkeypatch.setattr(texts, "build_model", build_model)
