"""One local step in place: clip the gradient, call the algorithm's pure function, copy back what it returns.

That is one pass over memory for the norm and one for all the rest (8 words a coordinate for FedAdamW, where torch's
fused AdamW moves 7): compiled, or by the kernels that torch has (fused.py). Plain, it is a pass for each operation;
the vectors are then processed in chunks that fit a core's cache.
"""

import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from fedadamw.algorithm import AnyAlgorithm, AnyState
from fedadamw.engine.fused import FusedStep
from fedadamw.engine.states import clone_tensors, iterate_tensors, map_tensors
from fedadamw.engine.step_library import LibraryStep, can_keep
from fedadamw.vector import Vector

CHUNK = 131_072  # coordinates of a plain step: each result takes 0.5 MB in float32, of a core's own cache
COMPILE_S = 60.0  # seconds that compiling must save: it takes 20 s the first time
SAVED_S = {"cpu": 4e-10, "cuda": 3e-11}  # by compiling, a coordinate and step: measured; a GPU's is a guess
SAVED_OF_PLAIN_S = {**SAVED_S, "cpu": 3e-9}  # before there were fused steps
Kind = Literal["compiled", "fused", "plain"]
Step = Callable[[AnyState, AnyState, Vector, Tensor], None]


def make_step(algorithm: AnyAlgorithm, clip: float | None, kind: Kind) -> Step:
    """Returns step(local, down, g, lr), which moves `local`, whose tensors are shared with nobody, along gradient `g`.

    kind: how it is done; the numbers are equal up to rounding. `fused` is for a CPU, and plain elsewhere.
    clip: the global norm that gradients are scaled down to, as in torch's clip_grad_norm_; of each stacked client.
    """

    def whole(local: AnyState, down: AnyState, g: Vector, lr: Tensor) -> None:
        new = algorithm.client_step(local, down, clip_gradient(g, clip), lr)
        copy_all(zip(iterate_tensors(local), iterate_tensors(new), strict=True))

    def chunked(local: AnyState, down: AnyState, g: Vector, lr: Tensor) -> None:
        d = g.shape[-1]
        scale = clip_scale(g, clip)
        for start in range(0, d, CHUNK):
            here = slice(start, start + CHUNK)
            part = _slice_vectors(local, d, here)
            g_part = g[..., here] if scale is None else g[..., here] * scale
            new = algorithm.client_step(part, _slice_vectors(down, d, here), g_part, lr)
            last = start + CHUNK >= d
            pairs = zip(iterate_tensors(part), iterate_tensors(new), strict=True)
            copy_all(pair for pair in pairs if last or pair[0].shape[-1] == g_part.shape[-1])  # counters move once

    def step(local: AnyState, down: AnyState, g: Vector, lr: Tensor) -> None:
        small = g.device.type != "cpu" or g.shape[-1] <= CHUNK
        (whole if small else chunked)(local, down, g, lr)

    plain = step if algorithm.elementwise else whole
    if kind == "plain":
        return plain
    fused = FusedStep(algorithm, lambda g: clip_scale(g, clip), plain)
    if kind == "fused":
        return fused
    return _Compiled(algorithm, whole, fused, LibraryStep(whole, algorithm, clip) if can_keep(algorithm) else None)


class _Compiled:
    """A step compiled to one kernel for a client alone, and another one for any number of stacked clients.

    If the compiler fails, it warns once and runs `fused`.
    """

    def __init__(self, algorithm: AnyAlgorithm, step: Step, fused: Step, library: Step | None) -> None:
        self._algorithm = algorithm
        self._whole, self._fused, self._library = step, fused, library  # the library is for a client alone
        self._step: Step | None = None  # to make one imports the compiler, which takes seconds

    def __call__(self, local: AnyState, down: AnyState, g: Vector, lr: Tensor) -> None:
        if self._library is not None and g.dim() == 1 and g.device.type == "cpu":
            try:
                self._library(local, down, g, lr)
                return
            except Exception as error:  # what AOTInductor cannot compile, torch.compile may
                warnings.warn(f"local steps are compiled anew in each run ({_reason(error)})", stacklevel=2)
                self._library = None
        if self._step is None:
            keeps = keeps_vectors(self._algorithm, local, down, g, lr)
            self._step = self._fused if keeps else torch.compile(self._whole)
        try:
            self._step(local, down, g, lr)
        except torch._dynamo.exc.TorchDynamoException as error:
            why = _reason(error)
            warnings.warn(f"local steps are not compiled ({why}); compile=off says so beforehand", stacklevel=2)
            self._step = self._fused
            self._step(local, down, g, lr)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def copy_all(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy into each (old, new) as if at once: a new tensor may be an old one of another pair, such as the last `y`."""
    changed = [(old, new) for old, new in pairs if new is not old]
    olds = [old for old, _ in changed]
    values = [
        new.clone() if any(_share_memory(new, old) for old in olds[:i]) else new for i, (_, new) in enumerate(changed)
    ]
    for old, value in zip(olds, values, strict=True):
        old.copy_(value)


def _share_memory(one: Tensor, other: Tensor) -> bool:
    if torch.compiler.is_compiling():  # see keeps_vectors
        return False
    return one.numel() > 0 and one.untyped_storage()._cdata == other.untyped_storage()._cdata


def keeps_vectors(algorithm: AnyAlgorithm, local: AnyState, down: AnyState, g: Vector, lr: Tensor) -> bool:
    """Whether a step keeps a tensor of the state in another field; torch's compiler would overwrite it first."""
    local = clone_tensors(local)
    olds, news = list(iterate_tensors(local)), list(iterate_tensors(algorithm.client_step(local, down, g, lr)))
    return any(_share_memory(new, old) for i, new in enumerate(news) for j, old in enumerate(olds) if i != j)


def compiling_pays(d: int, steps: int, device: torch.device, saved: Mapping[str, float] = SAVED_S) -> bool:
    """Whether compiling saves more time than it takes, in a run of `steps` local steps on d coordinates."""
    return has_compiler(device) and d * steps * saved[device.type] > COMPILE_S


def clip_scale(g: Vector, norm: float | None) -> Tensor | None:
    """The factor (..., 1) that scales `g` (..., d) down to `norm`; None if there is no limit."""
    if norm is None:
        return None
    length: Tensor = torch.linalg.vector_norm(g, dim=-1, keepdim=True)
    return (norm / (length + 1e-6)).clamp(max=1.0)


def clip_gradient(g: Vector, norm: float | None) -> Vector:
    """`g` (..., d), scaled down to the global norm `norm` if it is longer."""
    scale = clip_scale(g, norm)
    return g if scale is None else g * scale


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile has what it needs: a C++ compiler on a CPU; on a GPU Triton, which needs a C compiler."""
    if device.type == "cpu":
        return shutil.which("g++") is not None or shutil.which("clang++") is not None
    from torch.utils._triton import has_triton

    found = any(shutil.which(name) for name in (os.environ.get("CC") or "gcc", "gcc", "clang"))
    return found and has_triton()


def _slice_vectors(state: AnyState, d: int, here: slice) -> AnyState:
    """The state with views of its vectors; tensors that are not d long stay whole."""
    return map_tensors(state, lambda t: t[..., here] if t.shape[-1:] == (d,) else t)
