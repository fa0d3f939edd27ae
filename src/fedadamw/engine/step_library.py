"""A compiled step as a shared library, kept in the user's cache: loading it takes milliseconds, compiling it 20 s.

torch.export and AOTInductor make it. Its file is named after everything that it depends on: the package's source, the
algorithm's settings, torch's version, the processor, threads, shapes. What cannot be named so is not kept: an algorithm
of another package. On a GPU and for stacked clients, torch.compile has a cache of its own, which takes seconds.
"""

import functools
import hashlib
import json
import os
import platform
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedadamw.algorithm import AnyAlgorithm, AnyState
from fedadamw.blocks.blocks import Blocks
from fedadamw.engine.states import iterate_tensors, map_tensors
from fedadamw.io.cache_folder import hold_lock, mark_used, remove_unused
from fedadamw.vector import Vector

LIMIT = 10**9  # bytes that are kept: some hundred libraries
PACKAGE = Path(__file__).parent.parent
ENGINE = ("step", "step_library", "states")
SOURCES = ("algorithms", "directions", "blocks", "vector.py", *(f"engine/{name}.py" for name in ENGINE))
CACHE = "TORCHINDUCTOR_CACHE_DIR"  # set by torch's compiler itself
VARIED = ("TORCHINDUCTOR_", "TORCH_COMPILE", "AOT_INDUCTOR_")  # variables that change what is compiled
Step = Callable[[AnyState, AnyState, Vector, Tensor], None]


def can_keep(algorithm: AnyAlgorithm) -> bool:
    """Whether the algorithm's step may be kept: it consists of this package's source."""
    modules = {base.__module__ for base in type(algorithm).__mro__} - {"builtins", "abc", "typing"}
    return all(module.startswith("fedadamw.") for module in modules) and hasattr(torch._C, "_aoti")


def find_folder() -> Path:
    """The folder of kept steps, which need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fedadamw" / "steps"


class LibraryStep:
    """step(local, down, g, lr) of one client: what `step`, with `clip` in it, does.

    The first call raises what torch's compiler raises.
    """

    def __init__(self, step: Step, algorithm: AnyAlgorithm, clip: float | None) -> None:
        self._step, self._algorithm, self._clip = step, algorithm, clip
        self._libraries: dict[object, Any] = {}  # by the tensors' types and shapes, which a library does not check

    def __call__(self, local: AnyState, down: AnyState, g: Vector, lr: Tensor) -> None:
        tensors = [*iterate_tensors(local), *iterate_tensors(down), g, lr]
        layout = tuple((t.dtype, t.shape, t.stride()) for t in tensors)
        if layout not in self._libraries:
            self._libraries[layout] = self._load(local, down, tensors)
        self._libraries[layout].boxed_run(tensors)

    def _load(self, local: AnyState, down: AnyState, tensors: Sequence[Tensor]) -> Any:
        with _keep_file(name_library(self._algorithm, self._clip, tensors)) as path:
            with suppress(Exception):  # there is none, or it is damaged
                return _open_whole(path)
            with tempfile.TemporaryDirectory() as folder:
                made = Path(folder) / path.name
                _compile(_Step(self._step, local, down), tensors, made)
                _keep(made, path)
                return _open(made)


class _Step(nn.Module):
    """The step as a function of a list of tensors, which torch.export takes."""

    def __init__(self, step: Step, local: AnyState, down: AnyState) -> None:
        super().__init__()
        self._step, self._local, self._down = step, local, down

    def forward(self, tensors: Sequence[Tensor]) -> tuple[()]:
        rest = iter(tensors)
        local = map_tensors(self._local, lambda _: next(rest))
        down = map_tensors(self._down, lambda _: next(rest))
        self._step(local, down, next(rest), next(rest))
        return ()


def _open(path: Path) -> Any:
    """Load a library; torch's own function for that imports its compiler, which takes seconds."""
    return torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)  # noqa: FBT003


def _open_whole(path: Path) -> Any:
    """Load a library that was kept; raises an error if there is none, or a damaged one, which would end the process."""
    with zipfile.ZipFile(path) as file:
        if file.testzip() is not None:
            raise zipfile.BadZipFile(path)
    return _open(path)


def _compile(step: nn.Module, tensors: Sequence[Tensor], path: Path) -> None:
    """Compile to the file `path`."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of what torch deprecates in itself
        # each a tensor of its own: what is one tensor in the first round (zeros) may be several later
        like = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for t in tensors]
        program = torch.export.export(step, (like,))
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def _keep(made: Path, path: Path) -> None:
    """Copy a library to `path`, complete or not at all."""
    beside = path.with_suffix(f".{os.getpid()}")
    try:
        shutil.copyfile(made, beside)
        beside.replace(path)
    except OSError:  # the disk is full, or the folder not ours
        with suppress(OSError):
            beside.unlink(missing_ok=True)


@contextmanager
def _keep_file(name: str) -> Iterator[Path]:
    """Context with the path of a kept step, made by one process."""
    folder = find_folder()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{name}.pt2"
    with hold_lock(path.with_suffix(".lock")):
        yield path
        mark_used(path)
        remove_unused(folder, LIMIT)


def name_library(algorithm: AnyAlgorithm, clip: float | None, tensors: Sequence[Tensor]) -> str:
    """The name of the library of an algorithm's step on these tensors, a digest of all that it depends on."""
    values = ((field.name, getattr(algorithm, field.name)) for field in fields(algorithm))  # type: ignore[arg-type]
    settings = {name: v.fingerprint if isinstance(v, Blocks) else v for name, v in values}
    shapes = [[str(t.dtype), list(t.shape), list(t.stride())] for t in tensors]
    varied = {k: v for k, v in os.environ.items() if k.startswith(VARIED) and k != CACHE}
    machine = [torch.__version__, torch.get_num_threads(), _processor(), platform.python_version(), varied]
    key = [type(algorithm).__qualname__, settings, clip, shapes, machine, _source_digest()]
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def _processor() -> str:
    """What this machine's processor can do: a library for another one might not run here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()} {torch.backends.cpu.get_cpu_capability()}"


@functools.cache
def _source_digest() -> str:
    digest = hashlib.sha256()
    for name in SOURCES:
        place = PACKAGE / name
        for file in sorted(place.glob("*.py")) if place.is_dir() else [place]:
            digest.update(file.read_bytes())
    return digest.hexdigest()
