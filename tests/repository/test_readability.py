"""What keeps the code readable: files and functions of a bounded length, a map that names every module, plain words."""

import ast
import re
from pathlib import Path

from support.checkout import ROOT

PACKAGE = ROOT / "src" / "fedadamw"
MAX_FILE_LINES = 400
MAX_SOURCE_LINES = 300  # longer ones give a reason in their docstring, in a line that begins with REASON
MAX_FUNCTION_LINES = 40
REASON = "Long because "
ROUNDABOUT = re.compile(
    r"fills? up|what is no |goes? on with|that somebody|is felt by|who wants to know|is to be had", re.IGNORECASE
)
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def python_files(*folders: str) -> list[Path]:
    paths = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return [path for path in paths if "site-packages" not in path.parts]  # of the peers' environments


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_file_is_longer_than_400_lines():
    lines = {name_of(path): len(path.read_text().splitlines()) for path in python_files("src", "tests", "benchmarks")}
    assert {name: count for name, count in lines.items() if count > MAX_FILE_LINES} == {}


def test_a_source_file_of_more_than_300_lines_gives_its_reason():
    unexplained = []
    for path in python_files("src"):
        text = path.read_text()
        docstring = ast.get_docstring(ast.parse(text)) or ""
        explained = any(line.startswith(REASON) for line in docstring.splitlines()[:8])
        if len(text.splitlines()) > MAX_SOURCE_LINES and not explained:
            unexplained.append(name_of(path))
    assert unexplained == []


def test_no_function_is_longer_than_40_lines():
    """Without its docstring, which for a command is the help text."""
    long = {}
    for path in python_files("src"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                docstring = len((ast.get_docstring(node) or "").splitlines())
                long[f"{name_of(path)}: {node.name}"] = node.end_lineno - node.lineno + 1 - docstring
    assert {name: count for name, count in long.items() if count > MAX_FUNCTION_LINES} == {}


def test_no_roundabout_phrase_is_left():
    texts = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(p for p in PACKAGE.rglob("*") if p.is_file())]
    hits = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in texts
        if path.suffix in (".md", ".py", ".yaml", ".html")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if ROUNDABOUT.search(line)
    ]
    assert hits == []


def map_of_the_package() -> dict[str, set[str]]:
    """The modules that CONTRIBUTING's map lists, by folder; "." is the root of the package."""
    section = CONTRIBUTING.split("## Where things are\n", 1)[1].split("\n\nBesides", 1)[0]
    listed = {}
    for entry in section.split("\n- **")[1:]:
        folder, *modules = re.findall(r"`([\w./]+)`", entry)
        listed[folder.rstrip("/")] = set(modules)
    return listed


def test_the_map_in_contributing_names_every_module_and_no_other():
    listed = map_of_the_package()
    actual: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        actual.setdefault(path.parent.relative_to(PACKAGE).as_posix(), set()).add(path.stem)
    actual = {folder: names - {"__init__", "__main__"} for folder, names in actual.items()}
    missing = {f"{folder}/{name}" for folder, names in actual.items() for name in names - listed.get(folder, set())}
    gone = {f"{folder}/{name}" for folder, names in listed.items() for name in names - actual.get(folder, set())}
    assert (missing, gone) == (set(), set())
