"""The walk-through that adds an algorithm does: its blocks, put into a copy of the checkout, pass the tests there."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from support.checkout import ROOT

PAGE = (ROOT / "docs" / "adding-an-algorithm.md").read_text()
BLOCK = re.compile(r"^\*\*`([^`\n]+)`\*\* \(([^)\n]+)\)\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(PAGE)
# Says which package it imports, then runs pytest on the arguments.
RUN = "import sys, fedadamw, pytest; print(fedadamw.__file__, flush=True); sys.exit(pytest.main(sys.argv[1:]))"


def added(text: str, where: str, block: str) -> str:
    """The text of a file after the page's instruction `where`."""
    if where == "append":
        return f"{text}\n\n{block}"
    if where == "add to the imports":
        place = list(re.finditer(r"^from fedadamw\.algorithms\..*\n", text, re.MULTILINE))[-1].end()
    else:
        name = where.removeprefix("add to ")
        start = re.search(rf"^{name}\b.*= {{\n", text, re.MULTILINE)
        assert start, f"no dict called {name}"
        place = text.index("\n}\n", start.end()) + 1
    return text[:place] + block + text[place:]


@pytest.fixture
def checkout(tmp_path):
    """A copy of the checkout with the page's algorithm in it."""
    for folder in ("src", "tests", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, where, block in BLOCKS:
        path = tmp_path / file
        assert path.exists() == (where != "new"), f"{file} ({where})"
        path.write_text(block if where == "new" else added(path.read_text(), where, block))
    return tmp_path


def test_the_page_touches_the_four_places_and_no_other():
    assert [(file, where) for file, where, _ in BLOCKS] == [
        ("src/fedadamw/algorithms/fedavgm.py", "new"),
        ("src/fedadamw/algorithms/registry.py", "add to the imports"),
        ("src/fedadamw/algorithms/registry.py", "add to ALGORITHMS"),
        ("tests/support/cases.py", "add to CASES"),
        ("tests/support/reference.py", "append"),
        ("docs/algorithms/fedavgm.md", "new"),
    ]
    assert PAGE.count("\n**`") == len(BLOCKS), "every block that names a file is read"


@pytest.mark.slow
def test_what_the_page_adds_passes_every_shared_test(checkout):
    source = checkout / "src"
    done = subprocess.run(
        [
            *(sys.executable, "-c", RUN, "-p", "no:cacheprovider", "-k", "fedavgm or every_algorithm"),
            "tests/algorithms/test_algorithms.py",
            "tests/algorithms/test_convergence.py",
            "tests/repository/test_architecture.py::test_every_algorithm_has_a_row_and_a_page",
        ],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert done.stdout.splitlines()[0] == str(source / "fedadamw" / "__init__.py")
    passed = re.search(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert passed, output
    assert int(passed.group(1)) > 5
