"""The notebooks run from the first cell to the last, open in Colab, and are committed without outputs."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkout import ROOT

NOTEBOOKS = {path.name: path for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))}
REPOSITORY = re.search(r'^repository = "(.+)"', (ROOT / "docs" / "conf.py").read_text(), re.MULTILINE)[1]
EXECUTE = """
import sys, nbclient, nbformat
nbclient.execute(nbformat.read(sys.argv[1], 4), kernel_name="python3", startup_timeout=300)
"""
LIMIT_S = 550


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


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs(name, tmp_path):
    missing = [module for module in ("nbclient", "ipykernel") if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} of the extra docs is not installed")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path / "ipython")}
    command = [sys.executable, "-c", EXECUTE, NOTEBOOKS[name]]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_cell_that_fails_is_noticed(tmp_path):
    pytest.importorskip("nbclient", reason="nbclient of the extra docs is not installed")
    notebook = json.loads(NOTEBOOKS["own-model.ipynb"].read_text())
    notebook["cells"] = [{**cells("own-model.ipynb", "code")[0], "source": ["assert 1 == 2"]}]
    path = Path(tmp_path / "fails.ipynb")
    path.write_text(json.dumps(notebook))
    done = subprocess.run([sys.executable, "-c", EXECUTE, path], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "AssertionError" in done.stderr
