"""The folder of models and texts, and one finished run with adapters."""

import pytest
from support import tiny_models
from support.trained_texts import TARGETS, lora, settings_of

from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load


@pytest.fixture(scope="package")
def place(tmp_path_factory):
    return tiny_models.folders(tmp_path_factory.mktemp("export"), TARGETS)


@pytest.fixture(scope="package")
def trained(place, tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("trained") / "run")
    execute(
        load("digits", settings_of(place, "bert", "text", *lora("bert", "factors"))), folder, resume=False, report=False
    )
    return folder
