"""How a picture comes to a size, as transformers' image processors do it: resized, then cut about its centre.

`Fit.picture` does it to one picture with Pillow, `Fit.pixels` to a batch on any device: both give the same bytes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]  # height, width
NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = range(6)  # Pillow's numbers
TRIES = 8  # pictures, until one tells which way Pillow goes
A, B = 0.54000002145767211914, 0.46000000834465026855  # of the Hamming window, which Pillow has in float32
BITS = 22  # of Pillow's weights, which are whole numbers


@dataclass(frozen=True)
class Fit:
    """Resized to a height and width, or so that its shorter side is of a length; then cut, or padded with zeros."""

    resize: Size | int | None = None
    crop: Size | None = None
    resample: int = BILINEAR  # Pillow's number of the filter

    @property
    def size(self) -> Size | None:
        """The size that every picture comes to, where it does not depend on the picture's own."""
        return self.crop or (self.resize if isinstance(self.resize, tuple) else None)

    def resized(self, size: Size) -> Size:
        """The size of a picture of `size` after it is resized; the longer side is rounded down."""
        if not isinstance(self.resize, int):
            return self.resize or size
        shorter = min(size)
        height, width = (self.resize if side == shorter else int(self.resize * side / shorter) for side in size)
        return height, width

    def output(self, size: Size) -> Size:
        """The size that a picture of `size` comes to."""
        return self.crop or self.resized(size)

    def picture(self, picture: "Image") -> "Image":
        """One picture, brought to its size."""
        from PIL.Image import Resampling

        height, width = self.resized((picture.height, picture.width))
        if picture.size != (width, height):
            picture = picture.resize((width, height), Resampling(self.resample))
        if self.crop is None or self.crop == (height, width):
            return picture
        left, top = _start(width, self.crop[1]), _start(height, self.crop[0])
        return picture.crop((left, top, left + self.crop[1], top + self.crop[0]))

    def pixels(self, pixels: Tensor) -> Tensor:
        """Bytes (n, c, h, w), brought to their size."""
        height, width = self.resized((pixels.shape[-2], pixels.shape[-1]))
        before = (pixels.shape[-2], pixels.shape[-1])
        if (height, width) != before:
            columns_first = _columns_first(before, (height, width), self.resample)
            pixels = _resized(pixels, (height, width), self.resample, columns_first=columns_first)
        if self.crop is None or self.crop == (height, width):
            return pixels
        left, top = _start(width, self.crop[1]), _start(height, self.crop[0])
        return F.pad(pixels, (-left, self.crop[1] + left - width, -top, self.crop[0] + top - height))


def _start(length: int, wanted: int) -> int:
    """Where the `wanted` pixels in the middle of `length` begin; negative: so many zeros come before them."""
    return (length - wanted) // 2 if wanted <= length else -math.ceil((wanted - length) / 2)


@lru_cache(maxsize=64)
def _columns_first(before: Size, after: Size, resample: int) -> bool:
    """Whether Pillow resizes the columns before the rows, which changes the rounding: it depends on its version."""
    import numpy as np
    from PIL import Image

    for seed in range(TRIES):
        pixels = np.random.default_rng(seed).integers(0, 256, before, dtype=np.uint8)
        ours = torch.from_numpy(pixels)[None, None]
        rows, columns = (_resized(ours, after, resample, columns_first=first)[0, 0].numpy() for first in (False, True))
        if (rows != columns).any():
            theirs = Image.fromarray(pixels).resize(after[::-1], Image.Resampling(resample))
            return int((columns != np.asarray(theirs)).sum()) < int((rows != np.asarray(theirs)).sum())
    return False


def _resized(pixels: Tensor, size: Size, resample: int, *, columns_first: bool) -> Tensor:
    sides = ((-2, size[0]), (-1, size[1]))
    for dim, length in sides if columns_first else reversed(sides):
        pixels = _along(pixels, dim, length, resample)
    return pixels


def _along(pixels: Tensor, dim: int, length: int, resample: int) -> Tensor:
    """Bytes resized to `length` along one dimension, rounded to bytes as Pillow does."""
    if pixels.shape[dim] == length:
        return pixels
    places, weights = (t.to(pixels.device) for t in _taps(pixels.shape[dim], length, resample))
    if weights.shape[0] == 1:
        return pixels.index_select(dim, places[0])
    shape = [*pixels.shape]
    shape[dim] = length
    total = torch.full(shape, 1 << (BITS - 1), dtype=torch.int32, device=pixels.device)
    across = [length if d == dim % len(shape) else 1 for d in range(len(shape))]
    for place, weight in zip(places, weights, strict=True):
        total.addcmul_(pixels.index_select(dim, place).int(), weight.view(across))
    return total.bitwise_right_shift_(BITS).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _taps(size: int, length: int, resample: int) -> tuple[Tensor, Tensor]:
    """Of each of the `length` new pixels, the old ones that it is made of and their weights, (taps, length) each."""
    scale = size / length
    if resample == NEAREST:
        centres = accumulate([scale / 2, *[scale] * (length - 1)])  # summed up, as Pillow has them
        nearest = torch.tensor([[int(centre) for centre in centres]])
        return nearest, torch.ones_like(nearest)
    support, kernel = KERNELS[resample]
    wide = max(scale, 1.0)
    places, weights = [], []
    for i in range(length):
        centre = (i + 0.5) * scale
        first = max(int(centre - support * wide + 0.5), 0)
        stop = min(int(centre + support * wide + 0.5), size)
        raw = [kernel((x - centre + 0.5) / wide) for x in range(first, stop)]
        whole = [math.trunc(w / sum(raw) * 2**BITS + math.copysign(0.5, w)) for w in raw]
        places.append(list(range(first, stop)))
        weights.append(whole)
    most = max(map(len, weights))
    padded = [p + [0] * (most - len(p)) for p in places], [w + [0] * (most - len(w)) for w in weights]
    return torch.tensor(padded[0]).T.contiguous(), torch.tensor(padded[1], dtype=torch.int32).T.contiguous()


def _sinc(x: float) -> float:
    return 1.0 if x == 0 else math.sin(math.pi * x) / (math.pi * x)


def _bicubic(x: float, a: float = -0.5) -> float:
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


KERNELS: dict[int, tuple[float, Callable[[float], float]]] = {  # how far each filter reaches, and its weights
    LANCZOS: (3.0, lambda x: _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0),
    BILINEAR: (1.0, lambda x: max(1 - abs(x), 0.0)),
    BICUBIC: (2.0, _bicubic),
    BOX: (0.5, lambda x: 1.0 if -0.5 < x <= 0.5 else 0.0),
    HAMMING: (1.0, lambda x: _sinc(x) * (A + B * math.cos(math.pi * x)) if abs(x) < 1 else 0.0),
}
