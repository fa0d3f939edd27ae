"""Installed packages: versions, those that are missing or broken, and the optional extras."""

import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from typing import NamedTuple

from fedadamw.validation import EXTRAS, missing_extra_error

MODULES = {  # what to import of a package whose module has another name
    "pyyaml": "yaml",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "vl-convert-python": "vl_convert",
}
PURPOSES = {  # of each extra
    "lora": "LoRA adapters: the section lora, and the recipes with LoRA",
    "quant": "model.quantize: frozen bases in 8 or 4 bits",
    "gguf": "models in one file, NAME.gguf",
    "answers": "data.metrics: scores of written answers, such as rouge-l",
    "minilm": "the pretrained encoder of the recipes small/*-minilm-lora, without a download",
    "tune": "fedadamw tune, and compare --tune",
    "privacy": "the section privacy, and fedadamw privacy: epsilon",
    "track": "trackers: tensorboard, wandb, mlflow, ...",
    "flower": "fedadamw flower: federations over a network",
}


class Package(NamedTuple):
    """A package that is needed."""

    name: str
    version: str | None  # None if it is not installed
    problem: str | None  # why it cannot be used; None if it can


class Extra(NamedTuple):
    """Packages that one part of fedadamw needs besides."""

    name: str
    purpose: str
    packages: dict[str, str | None]  # name -> version, None if it is missing
    install: str | None  # the command that installs what is missing; None if nothing is


def check_packages() -> list[Package]:
    """Return the packages that fedadamw needs, each imported to see whether it works."""
    needed = [line for line in requires("fedadamw") or () if "extra ==" not in line]
    return [_check_package(line.partition(";")[0].strip()) for line in needed]


def check_extras() -> list[Extra]:
    """Return the optional extras. Nothing is imported."""
    return [_check_extra(name, purpose) for name, purpose in PURPOSES.items()]


def find_version(name: str) -> str | None:
    """Return the installed version of a package; None if there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _check_extra(name: str, purpose: str) -> Extra:
    found = {_name_of(package): find_version(_name_of(package)) for package in EXTRAS[name]}
    unmet = [package for package in EXTRAS[name] if _find_problem(package) is not None]
    install = str(missing_extra_error(name, name)).partition(": ")[2] if unmet else None
    return Extra(name, purpose, found, install)


def _check_package(requirement: str) -> Package:
    name = _name_of(requirement)
    problem = _find_problem(requirement)
    if problem is None:
        try:
            import_module(MODULES.get(name, name).replace("-", "_"))
        except Exception as error:  # whatever a broken installation raises
            problem = f"cannot be imported ({' '.join(f'{type(error).__name__}: {error}'.split())})"
    return Package(name, find_version(name), problem)


def _find_problem(requirement: str) -> str | None:
    """Why the installed version does not do; None if it does."""
    from packaging.requirements import Requirement  # needed by torch's libraries, so it is there if they are

    installed = find_version(_name_of(requirement))
    if installed is None:
        return f"is missing: pip install '{requirement}'"
    fits = Requirement(requirement).specifier.contains(installed, prereleases=True)
    return None if fits else f"is {installed}: pip install '{requirement}'"


def _name_of(requirement: str) -> str:
    """The package's name in a requirement such as `torch>=2.6`."""
    return re.split(r"[<>=!~\[ ]", requirement)[0].lower()
