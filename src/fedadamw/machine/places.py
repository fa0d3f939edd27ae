"""Folders that are written to, and the environment that says where and whether to ask the network."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

GB = 1e9
FLAGS = (
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "HF_HOME",
    "HF_ENDPOINT",
    "CUDA_VISIBLE_DEVICES",
)


class Place(NamedTuple):
    """A folder that is written to."""

    purpose: str
    path: str  # with ~ for the home
    free_gb: float | None  # None if the folder cannot be reached
    problem: str | None  # why nothing can be written there; None if it can
    without: str  # what happens then


def check_places() -> list[Place]:
    """Return the folders that fedadamw and its libraries write to, each tried with a file that leaves no trace."""
    return [
        _check("runs", Path.cwd, "give another folder with --out"),
        _check("temporary files", lambda: Path(tempfile.gettempdir()), "set TMPDIR: nothing can be compiled"),
        _check("home", Path.home, "nothing is kept between commands; set HF_HOME for what is downloaded"),
        _check("models from the hub", _hub_cache, "set HF_HOME: models cannot be downloaded"),
        _check("data sets", _data_cache, "set HF_HOME: files of data cannot be converted"),
        _check("compiled steps", _steps, "set XDG_CACHE_HOME: local steps are compiled in every run"),
    ]


def list_flags() -> dict[str, str]:
    """Return the set variables that say where downloads go, whether to ask the network, and which GPUs are seen."""
    found = {name: os.environ[name] for name in FLAGS if os.environ.get(name)}
    if "HF_ENDPOINT" in found:
        found["HF_ENDPOINT"] = urlsplit(found["HF_ENDPOINT"]).hostname or "?"  # a user name or password stays here
    return {name: _with_tilde(value) for name, value in found.items()}


def _hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _data_cache() -> Path:
    from datasets.config import HF_DATASETS_CACHE

    return Path(HF_DATASETS_CACHE)


def _steps() -> Path:
    from fedadamw.engine.step_library import find_folder

    return find_folder()


def _check(purpose: str, find: Callable[[], Path], without: str) -> Place:
    try:
        path = find()
    except (OSError, RuntimeError, ImportError) as error:  # no home, a folder that is gone, a broken library
        return Place(purpose, "?", None, " ".join(str(error).split()), without)
    try:
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        free = round(shutil.disk_usage(existing).free / GB, 1)
        with tempfile.TemporaryFile(dir=existing):
            return Place(purpose, _with_tilde(str(path)), free, None, without)
    except OSError as error:
        return Place(purpose, _with_tilde(str(path)), None, error.strerror or str(error), without)


def _with_tilde(path: str) -> str:
    """The path as it may be shown in public: without the user's name."""
    try:
        home = str(Path.home())
    except RuntimeError:
        return path
    return f"~{path.removeprefix(home)}" if path == home or path.startswith(f"{home.rstrip('/')}/") else path
