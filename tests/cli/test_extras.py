"""Extras, and what texts say about installing."""

import re
import sys

import pytest
from support.checkout import ROOT

from fedadamw.cli.flower import _require_flower
from fedadamw.flower.new_app import write_app
from fedadamw.runner.tracking import check_trackers
from fedadamw.settings.load import load
from fedadamw.study.search import open_journal
from fedadamw.validation import EXTRAS, InputError, missing_extra_error


def test_extras_match_pyproject():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = {
        name: tuple(line.partition(";")[0] for line in lines)
        for name, lines in project["optional-dependencies"].items()
    }
    assert EXTRAS.items() <= own.items()


def test_a_missing_library_is_named_with_its_packages(monkeypatch, tmp_path):
    for library in ("accelerate.tracking", "optuna"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        InputError, match=r"^trackers need accelerate: pip install 'accelerate>=1.10' 'tensorboard>=2.15'$"
    ):
        check_trackers(["tensorboard"])
    with pytest.raises(InputError, match=r"^tune needs optuna: pip install 'optuna>=4.0'$"):
        open_journal(tmp_path / "optuna.log")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "cryptography" else name)
    with pytest.raises(InputError, match=r"^cryptography is not installed: pip install 'flwr>=1.41,<1.42' 'click<"):
        _require_flower()
    assert str(missing_extra_error("it", "lora")) == "it: pip install 'peft>=0.17'"


def test_texts_install_from_an_index_only_where_they_speak_of_a_release():
    """Before the first release a package of this name would be a stranger's."""
    files = [ROOT / "README.md", *(ROOT / "src").rglob("*.py")]
    files += [path for part in ("docs", "deploy", "examples") for path in (ROOT / part).rglob("*")]
    texts = [path for path in files if path.suffix in (".md", ".py", ".toml", ".yaml", "") and path.is_file()]
    asks = re.compile(
        r"pip install(?: [^`\n]*)?['\" ]fedadamw(\[[\w,]*\])?(?![\w./-])|^dependencies = .*fedadamw", re.MULTILINE
    )
    paragraphs = ((path, part) for path in texts for part in re.split(r"\n{2,}(?!```)", path.read_text()))
    assert [str(path) for path, part in paragraphs if asks.search(part) and "release" not in part.lower()] == []


def test_an_app_depends_only_on_flower(tmp_path):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")
    write_app(tmp_path / "app", load("digits"))
    for path in (tmp_path / "app/pyproject.toml", *(ROOT / "examples").glob("*/pyproject.toml")):
        assert tomllib.loads(path.read_text())["project"]["dependencies"] == [EXTRAS["flower"][0]]
