"""What a release consists of: a wheel and an sdist that are complete, typed, and run where there is no checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from support.checkout import ROOT

(VERSION,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]  # root that no file obeys
PARTS = {"benchmarks", "deploy", "docs", "examples", "src", "tests"}  # folders of the sdist
FILES = {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "constraints.txt"}
FILES |= {".gitignore", "README.zh-CN.md", "PKG-INFO", "pyproject.toml"}
PROGRAM = """
import torch
from torch import nn

import fedadamw

inputs, labels = torch.randn(60, 4), torch.arange(60) % 3
result = fedadamw.simulate(
    nn.Linear(4, 3),
    (inputs, labels),
    (inputs, labels),
    fedadamw.partition.dirichlet(labels, clients=4, concentration=1.0, minimum=2),
    metrics={"accuracy": lambda outputs, targets: float((outputs.argmax(1) == targets).float().mean())},
    algorithm_settings={"alpha": 0.5},
    rounds=1,
    steps=1,
    callbacks=[lambda record: record.train_loss is not None and record.train_loss > 9],
)
blocks = fedadamw.Blocks.of(result.model)
optimizer = fedadamw.FedAdamW(result.model.named_parameters(), lr=1e-2, blocks=blocks)
print(f"{len(result.records)} round, {blocks.B} blocks")
"""
MISTAKES = """
reveal_type(result.model)
fedadamw.FedAdamW(result.model.named_parameters(), lr="fast")
fedadamw.simulate(nn.Linear(4, 3), inputs, inputs, [], schedule="linear")
"""


@pytest.fixture(scope="session")
def dist(shared_folder) -> Path:
    """A folder with the wheel and the sdist, built by what the extra `dev` holds, without a package index."""

    def build(folder: Path) -> None:
        for target in ("sdist", "wheel"):
            command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr

    return shared_folder("dist", build)


@pytest.fixture(scope="session")
def wheel(dist) -> Path:
    return dist / f"fedadamw-{VERSION}-py3-none-any.whl"


@pytest.fixture(scope="session")
def python(shared_folder, wheel) -> Path:
    """An interpreter with the wheel and the libraries of this environment, and no checkout on its path."""

    def install(folder: Path) -> None:
        venv.create(folder / "env", symlinks=True)
        (own,) = (folder / "env").glob("lib/*/site-packages")
        libraries = [path for path in sys.path if path.endswith("site-packages")]  # their .pth files are not followed
        (own / "libraries.pth").write_text("\n".join(libraries))
        pip = [sys.executable, "-m", "pip", "--python", folder / "env/bin/python", "install", "--no-deps", "--no-index"]
        run([*pip, "--ignore-installed", wheel])

    return shared_folder("wheel", install) / "env/bin/python"


def run(command: list, **options) -> subprocess.CompletedProcess:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def files_below(folder: Path) -> set[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in files if not {"__pycache__", "_build"} & set(path.parts)}


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {f"fedadamw/{name}" for name in files_below(ROOT / "src/fedadamw") if not name.endswith(".md")}
    assert {Path(name).suffix for name in names if "/py.typed" not in name} <= {".py", ".yaml", ".html", ".js", ".css"}
    assert {"fedadamw/py.typed", "fedadamw/recipes/digits.yaml", "fedadamw/report/page.html"} <= names


def test_the_sdist_holds_the_repository_and_no_data(dist):
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("only git knows which files are the repository's")
    with tarfile.open(dist / f"fedadamw-{VERSION}.tar.gz") as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT).stdout.splitlines()
    own = {name for name in listed if name.partition("/")[0] in PARTS and (ROOT / name).exists()}
    assert names == own | FILES
    assert (dist / f"fedadamw-{VERSION}.tar.gz").stat().st_size < 5e6


def test_the_description_on_an_index_has_no_link_into_the_repository(wheel):
    metadata = message_from_bytes(zipfile.ZipFile(wheel).read(f"fedadamw-{VERSION}.dist-info/METADATA"))
    text = metadata.get_payload()
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert [target for target in re.findall(r"\]\(([^)]*)\)", text) if not target.startswith(("https:", "#"))] == []
    assert re.findall(r"(?:src|srcset|href)=\"(?!https:|#)[^\"]*", text) == []
    assert len(text) > len((ROOT / "README.md").read_text()) / 2


def test_the_version_is_the_same_in_every_file():
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {VERSION}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"fedadamw-{VERSION}-py3-none-any.whl[flower]" in (ROOT / "docs/federation.md").read_text()


@pytest.mark.slow
def test_digits_runs_from_the_wheel_without_checkout_network_or_home(python, tmp_path):
    prefix = UNPRIVILEGED if os.geteuid() == 0 else []
    if prefix and shutil.which("setpriv") is None:
        pytest.skip("root needs setpriv to give up the right to write everywhere")
    folder, home = tmp_path / "Ein Ordner für Tests", tmp_path / "home"
    folder.mkdir()
    home.mkdir(mode=0o555)
    offline = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")  # nothing listens there
    inside = {"cwd": folder, "env": {"HOME": str(home), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **offline}}
    where = "import os, fedadamw; print(fedadamw.__file__, os.access(os.environ['HOME'], os.W_OK))"
    assert run([*prefix, python, "-c", where], **inside).stdout.split() == [
        str(next(python.parent.parent.glob("lib/*/site-packages")) / "fedadamw/__init__.py"),
        "False",
    ]
    command = [*prefix, python.parent / "fedadamw", "run", "digits", "--out", "runs/zwei Runden"]
    done = run([*command, "-s", "training.rounds=2", "-s", "training.steps=2"], **inside)
    assert "Warning" not in done.stderr
    out = folder / "runs/zwei Runden"
    records = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(record)["round"] for record in records] == [1, 2]
    assert {"report.html", "curves.png", "checkpoint"} <= {path.name for path in out.iterdir()}
    run([*prefix, python.parent / "fedadamw", "flower", "new", "app", "small/sst2-minilm-lora"], **inside)
    assert (folder / "app/app/experiment.yaml").is_file()
    assert list(home.iterdir()) == []


@pytest.mark.slow
def test_a_program_runs_with_the_wheel_and_its_types_are_checked(python, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    assert run([python, "program.py"], cwd=tmp_path).stdout.splitlines()[-1] == "1 round, 4 blocks"
    (tmp_path / "mistakes.py").write_text(PROGRAM + MISTAKES)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "--cache-dir", tmp_path / "cache"]
    done = subprocess.run([*map(str, mypy), "mistakes.py"], cwd=tmp_path, capture_output=True, text=True)
    said = [line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("mistakes.py")]
    assert said == [
        'note: Revealed type is "torch.nn.modules.module.Module"',
        'error: Argument "lr" to "FedAdamW" has incompatible type "str"; expected "float | Tensor"  [arg-type]',
        'error: Argument "schedule" to "simulate" has incompatible type "Literal[\'linear\']"; '
        "expected \"Literal['cosine', 'constant']\"  [arg-type]",
    ]


@pytest.mark.slow
def test_tests_run_from_the_sdist(dist, python, tmp_path):
    with tarfile.open(dist / f"fedadamw-{VERSION}.tar.gz") as archive:
        archive.extractall(tmp_path)
    (folder,) = tmp_path.iterdir()
    tests = ["tests/settings", "tests/repository/test_readability.py", "tests/repository/test_architecture.py"]
    done = run([python, "-m", "pytest", "-p", "no:cacheprovider", *tests], cwd=folder)
    assert " passed" in done.stdout
