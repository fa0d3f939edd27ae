"""Resize images and crop their centre, as transformers' image processors do.

`ResizeCrop.resize_image` takes one Pillow image, `resize_batch` a batch on any device: both give the same bytes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

Size = tuple[int, int]  # height, width
Taps = npt.NDArray[np.signedinteger[Any]]
NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = range(6)  # Pillow's numbers
MAX_PROBES = 8  # random images tried to find out in which order Pillow resizes
HAMMING_WINDOW = (0.54000002145767211914, 0.46000000834465026855)  # float32 in Pillow
WEIGHT_BITS = 22  # Pillow's weights are fixed-point numbers


@dataclass(frozen=True)
class ResizeCrop:
    """Resizes, then crops the centre; an image smaller than the crop is padded with zeros."""

    resize: Size | int | None = None  # height and width, or the length of the shorter side
    crop: Size | None = None
    resample: int = BILINEAR  # Pillow's number of the filter

    @property
    def fixed_size(self) -> Size | None:
        """The output size, if it is the same for every image."""
        return self.crop or (self.resize if isinstance(self.resize, tuple) else None)

    def size_after_resize(self, size: Size) -> Size:
        """Return the size of an image of `size` after resizing; the longer side is rounded down."""
        if not isinstance(self.resize, int):
            return self.resize or size
        shorter = min(size)
        height, width = (self.resize if side == shorter else int(self.resize * side / shorter) for side in size)
        return height, width

    def output_size(self, size: Size) -> Size:
        """Return the size of an image of `size` after resizing and cropping."""
        return self.crop or self.size_after_resize(size)

    def resize_image(self, image: "Image") -> "Image":
        """Resize and crop one image with Pillow."""
        from PIL.Image import Resampling

        height, width = self.size_after_resize((image.height, image.width))
        if image.size != (width, height):
            image = image.resize((width, height), Resampling(self.resample))
        if self.crop is None or self.crop == (height, width):
            return image
        left, top = _crop_start(width, self.crop[1]), _crop_start(height, self.crop[0])
        return image.crop((left, top, left + self.crop[1], top + self.crop[0]))

    def resize_batch(self, pixels: Tensor) -> Tensor:
        """Resize and crop a batch of bytes (n, c, h, w) on its device."""
        before = (pixels.shape[-2], pixels.shape[-1])
        height, width = self.size_after_resize(before)
        if (height, width) != before:
            columns_first = _resizes_columns_first(before, (height, width), self.resample)
            pixels = _resize(pixels, (height, width), self.resample, columns_first=columns_first)
        if self.crop is None or self.crop == (height, width):
            return pixels
        left, top = _crop_start(width, self.crop[1]), _crop_start(height, self.crop[0])
        return F.pad(pixels, (-left, self.crop[1] + left - width, -top, self.crop[0] + top - height))


def _crop_start(length: int, crop: int) -> int:
    """Return where the `crop` central pixels of `length` begin; a negative value is the padding before them."""
    return (length - crop) // 2 if crop <= length else -math.ceil((crop - length) / 2)


@lru_cache(maxsize=64)
def _resizes_columns_first(before: Size, after: Size, resample: int) -> bool:
    """Whether this version of Pillow resizes columns before rows, which changes the rounding."""
    from PIL import Image

    for seed in range(MAX_PROBES):
        pixels = np.random.default_rng(seed).integers(0, 256, before, dtype=np.uint8)
        ours = torch.from_numpy(pixels)[None, None]
        rows, columns = (_resize(ours, after, resample, columns_first=first)[0, 0].numpy() for first in (False, True))
        if (rows != columns).any():
            theirs = Image.fromarray(pixels).resize(after[::-1], Image.Resampling(resample))
            return int((columns != np.asarray(theirs)).sum()) < int((rows != np.asarray(theirs)).sum())
    return False


def _resize(pixels: Tensor, size: Size, resample: int, *, columns_first: bool) -> Tensor:
    sides = ((-2, size[0]), (-1, size[1]))
    for dim, length in sides if columns_first else reversed(sides):
        pixels = _resize_dim(pixels, dim, length, resample)
    return pixels


def _resize_dim(pixels: Tensor, dim: int, length: int, resample: int) -> Tensor:
    """Resize bytes to `length` along one dimension, with Pillow's rounding."""
    if pixels.shape[dim] == length:
        return pixels
    taps = _filter_taps(pixels.shape[dim], length, resample)
    places, weights = (torch.tensor(numbers, device=pixels.device) for numbers in taps)
    if weights.shape[0] == 1:
        return pixels.index_select(dim, places[0])
    shape = [*pixels.shape]
    shape[dim] = length
    total = torch.full(shape, 1 << (WEIGHT_BITS - 1), dtype=torch.int32, device=pixels.device)
    broadcast = [length if d == dim % len(shape) else 1 for d in range(len(shape))]
    for place, weight in zip(places, weights, strict=True):
        total.addcmul_(pixels.index_select(dim, place).int(), weight.view(broadcast))
    return total.bitwise_right_shift_(WEIGHT_BITS).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _filter_taps(size: int, length: int, resample: int) -> tuple[Taps, Taps]:
    """Return the source pixels of each of `length` new pixels and their weights, (taps, length) each.

    They are kept for the whole process, so they are no tensors: those may be on another device at the next call.
    """
    if resample == NEAREST:
        return _nearest_taps(size, length)
    scale = size / length
    support, kernel = KERNELS[resample]
    width = max(scale, 1.0)
    places, weights = [], []
    for i in range(length):
        centre = (i + 0.5) * scale
        first = max(int(centre - support * width + 0.5), 0)
        stop = min(int(centre + support * width + 0.5), size)
        raw = [kernel((x - centre + 0.5) / width) for x in range(first, stop)]
        weights.append([math.trunc(w / sum(raw) * 2**WEIGHT_BITS + math.copysign(0.5, w)) for w in raw])
        places.append(list(range(first, stop)))
    return _pad_taps(places), _pad_taps(weights).astype(np.int32)


def _nearest_taps(size: int, length: int) -> tuple[Taps, Taps]:
    """Return `_filter_taps` of the nearest-neighbour filter: one pixel each."""
    scale = size / length
    centres = accumulate([scale / 2, *[scale] * (length - 1)])  # a running sum, as in Pillow
    nearest = np.array([[int(centre) for centre in centres]])
    return nearest, np.ones_like(nearest)


def _pad_taps(rows: list[list[int]]) -> Taps:
    """Pad the rows with zeros to the longest, (longest, rows)."""
    longest = max(map(len, rows))
    taps: Taps = np.array([row + [0] * (longest - len(row)) for row in rows]).T
    return taps


def _sinc(x: float) -> float:
    return 1.0 if x == 0 else math.sin(math.pi * x) / (math.pi * x)


def _hamming(x: float) -> float:
    return HAMMING_WINDOW[0] + HAMMING_WINDOW[1] * math.cos(math.pi * x)


def _bicubic(x: float, a: float = -0.5) -> float:
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


KERNELS: dict[int, tuple[float, Callable[[float], float]]] = {  # support and weight function of each filter
    LANCZOS: (3.0, lambda x: _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0),
    BILINEAR: (1.0, lambda x: max(1 - abs(x), 0.0)),
    BICUBIC: (2.0, _bicubic),
    BOX: (0.5, lambda x: 1.0 if -0.5 < x <= 0.5 else 0.0),
    HAMMING: (1.0, lambda x: _sinc(x) * _hamming(x) if abs(x) < 1 else 0.0),
}
