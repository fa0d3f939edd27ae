"""One local step in place: clip the gradient, let the algorithm's pure function move the state, keep what it returns.

Compiled, that is one pass over memory for the norm and one for all the rest (8 words a coordinate for FedAdamW, where
torch's fused AdamW moves 7). Without a compiler, vectors are worked through in pieces that fit a core's cache.
"""

import shutil
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.engine.states import leaves, mapped
from fedadamw.vector import Vector

PIECE = 131_072  # coordinates a piece, 0.5 MB in float32
COMPILE_S = 60.0  # that compiling must save: it takes 20 s the first time, 3 s from its cache
Step = Callable[[Any, Any, Vector, Tensor], None]


def stepper(algorithm: AnyAlgorithm, clip: float | None, *, compiled: bool) -> Step:
    """The function that moves `local` along a gradient: step(local, down, g, lr). All tensors of `local` are its own.

    clip: the global norm that gradients are scaled down to, as torch's clip_grad_norm_ does; of each client where
    they are stacked.
    """

    def whole(local: Any, down: Any, g: Vector, lr: Tensor) -> None:
        new = algorithm.client_step(local, down, clipped(g, clip), lr)
        for old, moved in zip(leaves(local), leaves(new), strict=True):
            if moved is not old:
                old.copy_(moved)

    def pieces(local: Any, down: Any, g: Vector, lr: Tensor) -> None:
        d = g.shape[-1]
        scale = clip_scale(g, clip)
        for start in range(0, d, PIECE):
            here = slice(start, start + PIECE)
            part = _sliced(local, d, here)
            own = g[..., here] if scale is None else g[..., here] * scale
            new = algorithm.client_step(part, _sliced(down, d, here), own, lr)
            last = start + PIECE >= d
            for old, moved in zip(leaves(part), leaves(new), strict=True):
                if moved is not old and (last or old.shape[-1] == own.shape[-1]):  # counters move once
                    old.copy_(moved)

    if compiled:
        return _Compiled(whole)
    if not algorithm.elementwise:
        return whole

    def step(local: Any, down: Any, g: Vector, lr: Tensor) -> None:
        small = g.device.type != "cpu" or g.shape[-1] <= PIECE
        (whole if small else pieces)(local, down, g, lr)

    return step


class _Compiled:
    """A step that torch.compile has made one kernel, for the shape of the first gradient; another, for any number of
    rows, where groups of fewer clients come. As it was, and one warning, where the compiler fails.
    """

    def __init__(self, step: Step) -> None:
        self._plain = step
        self._step: Step = torch.compile(step)

    def __call__(self, local: Any, down: Any, g: Vector, lr: Tensor) -> None:
        try:
            self._step(local, down, g, lr)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            why = str(error).strip().splitlines()[0]
            warnings.warn(f"local steps are not compiled ({why}); compile=off says so beforehand", stacklevel=2)
            self._step = self._plain
            self._step(local, down, g, lr)


def compiling_pays(d: int, steps: int, device: torch.device) -> bool:
    """Whether compiling saves more than it costs in a run of `steps` local steps on d coordinates."""
    saved = 3e-9 if device.type == "cpu" else 3e-11  # seconds a coordinate and step: measured; a GPU's is a guess
    return compiler_found(device) and d * steps * saved > COMPILE_S


def clip_scale(g: Vector, norm: float | None) -> Tensor | None:
    """What `g` (..., d) is multiplied with so that it is no longer than `norm`, (..., 1)."""
    if norm is None:
        return None
    length: Tensor = torch.linalg.vector_norm(g, dim=-1, keepdim=True)
    return (norm / (length + 1e-6)).clamp(max=1.0)


def clipped(g: Vector, norm: float | None) -> Vector:
    """`g` (..., d), scaled down to the global norm `norm` where it is longer."""
    scale = clip_scale(g, norm)
    return g if scale is None else g * scale


def compiler_found(device: torch.device) -> bool:
    """Whether torch.compile has what it needs: a C++ compiler on a CPU, Triton on a GPU."""
    if device.type == "cpu":
        return shutil.which("g++") is not None or shutil.which("clang++") is not None
    from torch.utils._triton import has_triton

    return has_triton()


def _sliced(state: Any, d: int, here: slice) -> Any:
    """The state with views of its vectors; what is not d long stays whole."""
    return mapped(state, lambda t: t[..., here] if t.shape[-1:] == (d,) else t)
