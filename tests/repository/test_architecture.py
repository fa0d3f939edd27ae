"""What the design promises of the code itself: imports point one way, no pickle, a light import."""

import ast
import re
import subprocess
import sys

from support.checkout import ROOT

PACKAGE = ROOT / "src" / "fedadamw"
LAYERS = (  # a file imports from its own row or from those above it
    ("validation", "io"),
    ("randomness", "vector"),
    ("task",),
    ("blocks",),
    ("algorithm",),
    ("directions",),
    ("algorithms", "checkpoint"),
    ("optim",),
    ("settings.training", "settings.federation", "settings.glue", "settings.recipes"),
    ("engine",),
    ("models",),
    ("data",),
    ("settings",),
    ("prepare",),
    ("report.metrics",),
    ("runner",),
    ("report",),
    ("trained",),
    ("flower",),
    ("study",),
    ("cli", "__init__"),
    ("__main__",),
)


def layer_of(module: str) -> int:
    first = module.split(".")[1] if "." in module else "__init__"
    return next(i for i, names in enumerate(LAYERS) if first in names)


def imports_of(path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_point_one_way():
    for path in PACKAGE.rglob("*.py"):
        own = layer_of("fedadamw." + path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."))
        for name in imports_of(path):
            if name.startswith("fedadamw."):
                assert layer_of(name) <= own, f"{path.relative_to(PACKAGE)} imports {name}"


def test_no_pickle_anywhere():
    forbidden = re.compile(
        r"\bpickle\b|torch\.load\(|torch\.save\(|allow_pickle=(?!False)|joblib|\bdill\b|cloudpickle|\bshelve\b"
    )
    for path in PACKAGE.rglob("*"):
        if path.suffix in (".py", ".yaml", ".html"):
            found = forbidden.search(path.read_text())
            assert found is None, f"{path.relative_to(PACKAGE)}: {found and found.group()}"


def test_importing_the_package_brings_in_no_heavy_library():
    code = "import sys, fedadamw; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"transformers", "datasets", "sklearn", "altair", "pydantic", "typer", "rich", "peft", "accelerate"}
    assert heavy & set(done.stdout.split()) == set()


def test_the_literal_twins_import_nothing_of_ours():
    for file in ("reference.py", "literal_algebra.py"):
        assert not any("fedadamw" in name for name in imports_of(ROOT / "tests" / "support" / file))


def test_every_algorithm_has_a_row_and_a_page():
    from support.cases import CASES

    from fedadamw.algorithms.registry import ALGORITHMS

    assert {case.name for case in CASES.values()} == set(ALGORITHMS)
    for name in ALGORITHMS:
        assert (ROOT / "docs" / "algorithms" / f"{name}.md").is_file(), name
