"""The page that adds an algorithm does: as a package of its own, installed, and as a part of this one."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from support.checkout import ROOT

PAGE = (ROOT / "docs" / "adding-an-algorithm.md").read_text()
BLOCK = re.compile(r"^\*\*`([^`\n]+)`\*\* \(([^)\n]+)\)\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(PAGE)
PACKAGE = [(file, block) for file, where, block in BLOCKS if where == "the package"]
HERE = [(file, where, block) for file, where, block in BLOCKS if where != "the package"]
# Says which package it imports, then runs pytest on the arguments.
RUN = "import sys, fedadamw, pytest; print(fedadamw.__file__, flush=True); sys.exit(pytest.main(sys.argv[1:]))"
FEW = "-s training.rounds=2 -s training.steps=1 -s training.clients_per_round=2 -s threads=1"


def added(text: str, where: str, block: str) -> str:
    """The text of a file after the page's instruction `where`."""
    if where == "append":
        return f"{text}\n\n{block}"
    if where.startswith("for `"):
        line = where.removeprefix("for `").removesuffix("`") + "\n"
        assert text.count(line) == 1
        return text.replace(line, block)
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
    (tmp_path / "src/fedadamw/algorithms/fedavgm.py").write_text(dict(PACKAGE)["fedavgm/fedavgm.py"])
    for file, where, block in HERE:
        path = tmp_path / file
        assert path.exists() == (where != "new"), f"{file} ({where})"
        path.write_text(block if where == "new" else added(path.read_text(), where, block))
    return tmp_path


@pytest.fixture
def environment(tmp_path) -> Path:
    """The bin folder of a new environment, which sees the libraries of this one; nothing is fetched."""
    pytest.importorskip("hatchling", reason="hatchling builds the package")
    pytest.importorskip("pip", reason="pip installs the package")
    venv.create(tmp_path / "environment", symlinks=True)
    (site,) = (tmp_path / "environment").glob("lib/python*/site-packages")
    seen = [path for path in sys.path if path.endswith("site-packages")]
    (site / "libraries.pth").write_text("\n".join([str(ROOT / "src"), *seen]) + "\n")
    return tmp_path / "environment" / "bin"


def test_the_page_makes_a_package_or_touches_four_places():
    assert [file for file, _ in PACKAGE] == ["fedavgm/pyproject.toml", "fedavgm/fedavgm.py", "fedavgm/test_fedavgm.py"]
    assert [(file, where) for file, where, _ in HERE] == [
        ("src/fedadamw/algorithms/fedavgm.py", "for `from fedadamw import Algorithm, Vector`"),
        ("src/fedadamw/algorithms/registry.py", "add to the imports"),
        ("src/fedadamw/algorithms/registry.py", "add to BUILT_IN"),
        ("tests/support/cases.py", "add to CASES"),
        ("tests/support/reference.py", "append"),
        ("docs/algorithms/fedavgm.md", "new"),
    ]
    assert PAGE.count("\n**`") == len(BLOCKS), "every block that names a file is read"


@pytest.mark.slow
def test_the_package_is_installed_listed_tested_run_and_compared(environment, tmp_path):
    for file, block in PACKAGE:
        path = tmp_path / "work" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)

    def call(line: str) -> str:
        """Run a line of the page in the environment."""
        done = subprocess.run(
            [str(environment / "python"), "-m", *shlex.split(line.removeprefix("python -m "), comments=True)],
            cwd=tmp_path / "work",
            env={**os.environ, "OMP_NUM_THREADS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    lines = re.search(r"^```sh\n(pip install \./fedavgm\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[1].splitlines()
    install, test, listing, run, compare, *_ = lines
    call(install)
    assert "2 passed" in call(test)
    assert re.sub(r".*# ", "  ", listing) in call(listing).splitlines()
    call(f"{run.partition(' #')[0]} {FEW}")
    assert json.loads((tmp_path / "work/runs/fedavgm/manifest.json").read_text())["versions"]["fedavgm"] == "0.1.0"
    call(f"{compare.partition(' #')[0].replace('--seeds 3', '--seeds 1')} {FEW}")
    results = json.loads((tmp_path / "work/runs/momentum/results.json").read_text())
    assert {row["variant"] for row in results["summary"]} == {"fedavgm", "fedavg"}
    assert results["versions"]["fedavgm"] == "0.1.0"
    assert results["missing"] == []


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
