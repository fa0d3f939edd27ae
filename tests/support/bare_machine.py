"""A Python that finds torch, transformers, peft, safetensors and what these bring, and no other package."""

import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOTS = ("torch", "transformers", "peft", "safetensors")


def make_bare_machine(folder: Path) -> Path:
    """Make it in `folder`, of links to the packages that are installed here; returns the interpreter."""
    venv.create(folder, symlinks=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    found: dict[str, Distribution] = {}
    for root in ROOTS:
        collect(root, found)
    assert not {"pydantic", "datasets", "altair", "scikit-learn"} & found.keys()
    for package in found.values():
        for top in sorted({Path(str(file)).parts[0] for file in package.files or ()} - {"..", "__pycache__"}):
            source = Path(str(package.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    return folder / "bin" / "python"


def collect(name: str, found: dict[str, Distribution]) -> None:
    """Add a package and all that it requires here; what is not installed is left out, as an optional one is."""
    try:
        package = distribution(name)
    except PackageNotFoundError:
        return
    if canonicalize_name(name) in found:
        return
    found[canonicalize_name(name)] = package
    for line in package.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            collect(requirement.name, found)
