"""Decode image files to arrays of bytes: open, rotate as EXIF says, convert to grey or RGB, resize.

image_task.py turns the arrays into batches of tensors.
"""

import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, ParamSpec, TypedDict, TypeVar

import numpy as np

from fedadamw.data.row_parts import map_parts
from fedadamw.data.samples import Array
from fedadamw.models.resizing import ResizeCrop, Size
from fedadamw.validation import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

SizeSource = Literal["size", "crop", "model"]  # what sets the size of images: their own, data.image_size, the model
OWN_SIZE: SizeSource = "size"
CROPPED: SizeSource = "crop"
MODEL_SIZE: SizeSource = "model"
GREY_MODES = ("L", "1", "I", "F")  # Pillow's modes without colour and transparency; besides I;16 of any byte order
# Errors that a bad image causes; others, such as too many open files, say nothing about the image.
IMAGE_ERRORS = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
P = ParamSpec("P")
Result = TypeVar("Result")


class BadImageError(InputError):
    """An image cannot be used; the message says why."""


class ImageCell(TypedDict):
    """An encoded image in a data set: the bytes of its file, or the path."""

    bytes: bytes | None
    path: str | None


@dataclass(frozen=True)
class PixelFormat:
    """What every image of a data set is converted to."""

    grey: bool
    size: Size
    resize: ResizeCrop
    size_from: SizeSource = field(default=OWN_SIZE, repr=False)  # does not change the pixels

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return (1 if self.grey else 3, *self.size)


@dataclass
class DecodeSummary:
    """What was noticed while images were decoded."""

    bad: dict[int, str]  # rows that cannot be used, and why
    coloured: int = 0  # images that lost their colour
    resized: int = 0  # images of another size
    brightest: int | None = None  # largest byte of images with 16 bits


class _Notice(NamedTuple):
    """What was noticed in some rows: as in DecodeSummary."""

    bad: list[tuple[int, str]]
    coloured: int
    resized: int
    brightest: int | None


def decode_images(split: "Dataset", column: str, target: PixelFormat, pixels: Array) -> DecodeSummary:
    """Decode all usable images of a split into `pixels` (n, c, h, w), shared memory, without gaps; on all cores."""
    notices = [
        _Notice(*n) for n in map_parts(lambda rows: _decode_rows(split, column, target, pixels, rows), len(split))
    ]
    summary = DecodeSummary({row: why for notice in notices for row, why in notice.bad})
    summary.coloured, summary.resized = sum(n.coloured for n in notices), sum(n.resized for n in notices)
    summary.brightest = max((n.brightest for n in notices if n.brightest is not None), default=None)
    if summary.bad:
        usable = [row for row in range(len(split)) if row not in summary.bad]
        for place, row in enumerate(usable):
            pixels[place] = pixels[row]
    return summary


def _decode_rows(split: "Dataset", column: str, target: PixelFormat, pixels: Array, rows: range) -> _Notice:
    """Decode some rows, each to its own place."""
    bad: list[tuple[int, str]] = []
    coloured, resized, brightest = 0, 0, None
    for row, cell in zip(rows, iter_encoded_images(split, column, rows), strict=True):
        try:
            image = run_decoder(open_image, cell)
            pixels[row] = run_decoder(image_to_array, image, target)
        except BadImageError as error:
            bad.append((row, str(error)))
            continue
        if has_16_bits(image.mode):
            brightest = max(brightest or 0, int(pixels[row].max()))
        coloured += target.grey and not is_grey(image.mode)
        resized += (image.height, image.width) != target.size
    return _Notice(bad, coloured, resized, brightest)


def iter_encoded_images(split: "Dataset", column: str, rows: range | None = None) -> Iterator[ImageCell | None]:
    """Iterate over the images of a split, or of some successive rows, without decoding them."""
    import datasets

    wanted = (split if rows is None else split.select(rows)).select_columns([column])
    encoded: Iterable[dict[str, ImageCell | None]] = wanted.cast_column(column, datasets.Image(decode=False))
    return (row[column] for row in encoded)


def open_image(cell: ImageCell | None) -> "Image":
    """Return the decoded image, rotated as its EXIF says."""
    import datasets

    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        raise BadImageError("there is none")
    content, path = cell["bytes"], cell["path"]
    if content is None and path is not None and Path(path).exists():
        content = Path(path).read_bytes()  # given a path, Pillow leaves a truncated file open
    image: Image = datasets.Image().decode_example({"path": path, "bytes": content})
    return image


def image_to_array(image: "Image", target: PixelFormat) -> Array:
    """Return an image as bytes (c, h, w) in the target format; raise BadImageError if its value range is unknown."""
    mode = "L" if target.grey else "RGB"
    image = _scale_to_bytes(image)
    array = np.asarray(target.resize.resize_image(image if image.mode == mode else image.convert(mode)))
    return array[None] if target.grey else array.transpose(2, 0, 1)


def _scale_to_bytes(image: "Image") -> "Image":
    """Scale an image of 16 bits, or of fractions from 0 to 1, to one byte a channel."""
    from PIL import Image

    if image.mode == "F":
        limit, known = 1.0, "fractions from 0 to 1"
    elif has_16_bits(image.mode):
        limit, known = 65535.0, "whole numbers from 0 to 65,535"
    else:
        return image
    numbers = np.asarray(image).astype(np.float64)
    if not (numbers.min() >= 0 and numbers.max() <= limit):  # true for NaN
        low, high = numbers.min(), numbers.max()
        raise BadImageError(f"holds {low:g} to {high:g}; Pillow's mode {image.mode} must hold {known}")
    return Image.fromarray((numbers * (255 / limit)).round().astype(np.uint8))


def is_grey(mode: str) -> bool:
    """Whether images of one of Pillow's modes have no colour."""
    return mode in GREY_MODES or has_16_bits(mode)


def has_16_bits(mode: str) -> bool:
    """Whether images of one of Pillow's modes have 16 bits a pixel, or integers of 32."""
    return mode == "I" or mode.startswith("I;16")


def run_decoder(decoder: Callable[P, Result], *args: P.args, **kwargs: P.kwargs) -> Result:
    """Call a decoder; raise BadImageError for whatever it raises, InputError if the image is not the cause."""
    try:
        return decoder(*args, **kwargs)
    except (BadImageError, MemoryError):
        raise
    except OSError as error:
        if error.errno not in IMAGE_ERRORS or isinstance(error, ConnectionError | TimeoutError):
            raise InputError(f"an image could not be read: {_first_line(error)}") from None
        raise BadImageError(_first_line(error)) from None
    except Exception as error:  # Pillow's decoders raise SyntaxError, struct.error, ...
        raise BadImageError(_first_line(error)) from None


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return "is not an image" if "cannot identify" in line else line
