"""A pretrained model's files are read once a run, whoever needs them."""

import pytest
from support import tiny_models
from support.text_experiments import experiment
from transformers import AutoConfig, AutoTokenizer

from fedadamw.prepare.simulation import prepare
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.trained.evaluate import evaluate
from fedadamw.trained.load import open_trained


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    tiny_models.folder(path / "bert", "bert")
    tiny_models.reviews(path / "reviews.csv")
    return path


@pytest.fixture
def loads(monkeypatch):
    """The classes whose from_pretrained was called."""
    calls = []
    for auto in (AutoConfig, AutoTokenizer):

        def load(*args, auto=auto, original=auto.from_pretrained, **kwargs):
            calls.append(auto)
            return original(*args, **kwargs)

        monkeypatch.setattr(auto, "from_pretrained", load)
    return calls


def test_preparing_a_text_run_loads_configuration_and_tokenizer_once(place, loads):
    prepare(experiment(place))
    assert sorted(auto.__name__ for auto in loads) == ["AutoConfig", "AutoTokenizer"]


def test_evaluating_a_text_run_loads_configuration_and_tokenizer_once(place, loads, tmp_path):
    execute(experiment(place), RunFolder(tmp_path / "run"), resume=False, report=False)
    loads.clear()
    evaluate(open_trained(tmp_path / "run"))
    assert sorted(auto.__name__ for auto in loads) == ["AutoConfig", "AutoTokenizer"]
