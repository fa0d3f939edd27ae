"""The structure that the design promises: imports point one way, no pickle, a light `import fedadamw`."""

import ast
import re
import subprocess
import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

from support.checkout import ROOT

PACKAGE = ROOT / "src" / "fedadamw"
ROOT_FILES = {"__init__", "__main__", "algorithm", "checkpoint", "randomness", "task", "validation", "vector"}
LAYERS = (  # a module imports from its own folder or from rows above it; an entry may also name one module of a folder
    ("validation",),
    ("io", "vector", "randomness", "task"),
    ("blocks", "algorithm", "directions", "checkpoint"),
    ("algorithms",),
    ("optim",),
    ("settings",),
    ("privacy", "devices"),
    ("models",),
    ("data",),
    ("engine",),
    ("machine",),
    ("prepare",),
    ("plan",),
    ("report",),
    ("runner",),
    ("trained", "study", "watch"),
    ("theory",),
    ("flower",),
    ("api",),
    ("cli", "__init__"),
    ("__main__",),
)


def row_of(module: str) -> int:
    """The row in LAYERS of `module`, as "models.hub": that of the entry which names the most of it."""
    rows = {name: row for row, names in enumerate(LAYERS) for name in names}
    parts = module.split(".")
    prefixes = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    named = [prefix for prefix in prefixes if prefix in rows]
    assert named, f"{module} has no row in LAYERS"
    return rows[named[0]]


def imports_of(path: Path) -> set[str]:
    """Everything that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports_between_folders() -> dict[tuple[str, str], list[tuple[str, str]]]:
    """The imports of the package's own modules, by the folders (or files of the root) that they go from and to."""
    edges = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        importer = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        for name in sorted(imports_of(path)):
            imported = name.removeprefix("fedadamw.") if name.startswith("fedadamw.") else None
            if imported and imported.split(".")[0] != importer.split(".")[0]:
                edges[importer.split(".")[0], imported.split(".")[0]].append((importer, imported))
    return edges


def test_imports_point_one_way():
    for imports in imports_between_folders().values():
        for importer, imported in imports:
            assert row_of(imported) <= row_of(importer), f"{importer} imports {imported}"


def test_the_most_specific_entry_gives_the_row(monkeypatch):
    monkeypatch.setitem(globals(), "LAYERS", (("models.hub",), ("data",), ("models",)))
    assert [row_of(name) for name in ("models.hub.load", "models", "models.text", "data.text")] == [0, 2, 2, 1]


def test_no_two_folders_import_each_other_even_through_others():
    graph = defaultdict(set)
    for importer, imported in imports_between_folders():
        graph[importer].add(imported)
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_pickle_anywhere():
    forbidden = re.compile(
        r"\bpickle\b|torch\.load\(|torch\.save\(|allow_pickle=(?!False)|joblib|\bdill\b|cloudpickle|\bshelve\b"
    )
    for path in PACKAGE.rglob("*"):
        if path.suffix in (".py", ".yaml", ".html"):
            match = forbidden.search(path.read_text())
            assert match is None, f"{path.relative_to(PACKAGE)}: {match and match.group()}"


def test_importing_the_package_imports_no_heavy_library():
    code = "import sys, fedadamw; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"transformers", "datasets", "sklearn", "altair", "pydantic", "typer", "rich", "peft", "accelerate"}
    assert heavy & set(done.stdout.split()) == set()


def test_the_literal_twins_import_nothing_of_the_package():
    for file in ("reference.py", "literal_algebra.py"):
        assert not any("fedadamw" in name for name in imports_of(ROOT / "tests" / "support" / file))


def test_the_root_of_the_package_has_no_other_files():
    assert {path.stem for path in PACKAGE.glob("*.py")} == ROOT_FILES


def test_every_algorithm_has_a_row_and_a_page():
    from support.cases import CASES

    from fedadamw.algorithms.registry import BUILT_IN

    assert {case.name for case in CASES.values()} == set(BUILT_IN)
    for name in BUILT_IN:
        assert (ROOT / "docs" / "algorithms" / f"{name}.md").is_file(), name
