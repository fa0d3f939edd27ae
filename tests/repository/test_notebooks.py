"""The notebooks run when the site is built, open in Colab, and are committed without outputs."""

import json
import re

import pytest
from support.checkout import ROOT

NOTEBOOKS = {path.name: path for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))}
REPOSITORY = re.search(r'^repository = "(.+)"', (ROOT / "docs" / "conf.py").read_text(), re.MULTILINE)[1]


def cells(name: str, kind: str) -> list[dict]:
    found = json.loads(NOTEBOOKS[name].read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def test_the_notebooks_are_there():
    assert set(NOTEBOOKS) == {"own-model.ipynb", "compare-algorithms.ipynb", "language-model.ipynb"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_committed_without_outputs(name):
    for cell in cells(name, "code"):
        assert (cell["outputs"], cell["execution_count"]) == ([], None), source(cell)
    assert json.loads(NOTEBOOKS[name].read_text())["metadata"]["kernelspec"]["name"] == "python3"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_its_badge_opens_this_file_in_colab(name):
    first = source(cells(name, "markdown")[0])
    url = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/docs/notebooks/{name}"
    assert f"colab-badge.svg)]({url})" in first


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_installs_the_package_in_colab_and_nowhere_else(name):
    first, *others = map(source, cells(name, "code"))
    assert first.startswith('import sys\n\nif "google.colab" in sys.modules:\n    %pip install -q "fedadamw')
    assert f" @ git+https://github.com/{REPOSITORY}" in first
    assert not any("%pip" in other or "\n!" in other for other in others)


def test_releasing_says_where_the_repositorys_name_is_set():
    text = (ROOT / "docs" / "releasing.md").read_text()
    assert "docs/conf.py docs/notebooks/*.ipynb" in text


def test_building_the_site_runs_them_and_stops_at_an_error():
    """As test_docs_site.py does: running them once more would take minutes."""
    settings = (ROOT / "docs" / "conf.py").read_text()
    assert re.search(r'^nb_execution_mode = "force"$', settings, re.MULTILINE)
    assert re.search(r"^nb_execution_raise_on_error = True$", settings, re.MULTILINE)
    assert not re.search(r"^nb_execution_excludepatterns", settings, re.MULTILINE)
