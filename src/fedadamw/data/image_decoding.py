"""One picture as bytes: opened, turned as its EXIF says, made grey or RGB, and brought to the size of its set."""

import errno
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fedadamw.data.sources import Array
from fedadamw.models.resizing import ResizeCrop, Size
from fedadamw.validation import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

OWN_SIZE, CROPPED, MODEL_SIZE = "size", "crop", "model"  # where the size comes from: images, data.image_size, model
GREY = ("L", "1", "I", "F")  # Pillow's modes without colour and transparency; and I;16 of whatever byte order
TURNED = (5, 6, 7, 8)  # orientations of EXIF that change width and height
OF_CONTENT = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)  # of errors that a picture makes
Result = TypeVar("Result")


class BadImageError(InputError):
    """A picture cannot be used; the message says why."""


@dataclass(frozen=True)
class PixelFormat:
    """What every picture of a data set is made."""

    grey: bool
    size: Size
    fit: ResizeCrop
    size_from: str = field(default=OWN_SIZE, repr=False)  # or CROPPED or MODEL_SIZE; no pixel depends on it

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return (1 if self.grey else 3, *self.size)


@dataclass(frozen=True)
class Survey:
    """What the headers of a split's pictures say."""

    colour: bool  # of any picture
    smallest: Size | None  # by area
    largest: Size | None
    same: bool  # whether all are of one size
    bad: dict[int, str]  # pictures that cannot be opened, and why

    @staticmethod
    def of(split: "Dataset", column: str) -> "Survey":
        """Look at every picture without decoding it."""
        sizes, modes, bad = set(), set(), {}
        for i, cell in enumerate(_cells(split, column)):
            try:
                size, mode = _careful(_header, cell)
            except BadImageError as error:
                bad[i] = str(error)
            else:
                sizes.add(size)
                modes.add(mode)
        by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
        least, most = (by_area[0], by_area[-1]) if by_area else (None, None)
        return Survey(not all(map(is_grey, modes)), least, most, len(sizes) < 2, bad)

    @staticmethod
    def from_json(text: str) -> "Survey":
        """What `to_json` wrote; ValueError, KeyError or TypeError where it is none."""
        found = json.loads(text)
        sizes = {end: found[end] and (int(found[end][0]), int(found[end][1])) for end in ("smallest", "largest")}
        bad = {int(row): str(why) for row, why in found["bad"].items()}
        return Survey(colour=bool(found["colour"]), same=bool(found["same"]), bad=bad, **sizes)

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self))


@dataclass
class DecodeSummary:
    """What was found while pictures were decoded."""

    bad: dict[int, str]  # rows, and why they cannot be used
    coloured: int = 0  # pictures that lost their colour
    resized: int = 0  # pictures of another size
    brightest: int | None = None  # byte of those that had 16 bits


def is_grey(mode: str) -> bool:
    """Whether pictures of one of Pillow's modes have no colour."""
    return mode in GREY or has_16_bits(mode)


def has_16_bits(mode: str) -> bool:
    """Whether pictures of one of Pillow's modes have 16 bits a pixel, or whole numbers of 32."""
    return mode == "I" or mode.startswith("I;16")


def decode(split: "Dataset", column: str, form: PixelFormat, pixels: Array) -> DecodeSummary:
    """Decode every picture of a split into `pixels` (n, c, h, w), one after the other; what cannot be is left out."""
    notes, place = DecodeSummary({}), 0
    for i, cell in enumerate(_cells(split, column)):
        try:
            picture = _careful(_opened, cell)
            pixels[place] = _careful(image_to_array, picture, form)
        except BadImageError as error:
            notes.bad[i] = str(error)
            continue
        if has_16_bits(picture.mode):
            notes.brightest = max(notes.brightest or 0, int(pixels[place].max()))
        notes.coloured += form.grey and not is_grey(picture.mode)
        notes.resized += (picture.height, picture.width) != form.size
        place += 1
    return notes


def image_to_array(picture: "Image", form: PixelFormat) -> Array:
    """A picture as bytes (c, h, w); BadImageError where its numbers have no known range."""
    mode = "L" if form.grey else "RGB"
    picture = _in_bytes(picture)
    array = np.asarray(form.fit.resize_image(picture if picture.mode == mode else picture.convert(mode)))
    return array[None] if form.grey else array.transpose(2, 0, 1)


def _in_bytes(picture: "Image") -> "Image":
    """The picture with a byte a channel, scaled by the range of its mode: 16 bits, or fractions from 0 to 1."""
    from PIL import Image

    if picture.mode == "F":
        most, what = 1.0, "fractions from 0 to 1"
    elif has_16_bits(picture.mode):
        most, what = 65535.0, "whole numbers from 0 to 65,535"
    else:
        return picture
    numbers = np.asarray(picture).astype(np.float64)
    if not (numbers.min() >= 0 and numbers.max() <= most):  # also where one is not a number
        low, high = numbers.min(), numbers.max()
        raise BadImageError(f"holds {low:g} to {high:g}, where {what} are known to Pillow's mode {picture.mode}")
    return Image.fromarray((numbers * (255 / most)).round().astype(np.uint8))


def _cells(split: "Dataset", column: str) -> Iterator[Mapping[str, Any] | None]:
    """The undecoded pictures of a split: their bytes, or the path of their file."""
    import datasets

    rows: Iterable[Any] = split.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return (row[column] for row in rows)


def _careful(work: Callable[..., Result], *arguments: Any) -> Result:
    """`work(*arguments)`; whatever a decoder stumbles over becomes a BadImageError.

    What says nothing about the picture, as too many open files do, is an InputError: no picture is left out for it.
    """
    try:
        return work(*arguments)
    except (BadImageError, MemoryError):
        raise
    except OSError as error:
        if error.errno not in OF_CONTENT or isinstance(error, ConnectionError | TimeoutError):
            raise InputError(f"a picture could not be read: {_first_line(error)}") from None
        raise BadImageError(_first_line(error)) from None
    except Exception as error:  # Pillow's decoders raise what their formats make them: SyntaxError, struct.error, ...
        raise BadImageError(_first_line(error)) from None


def _first_line(error: Exception) -> str:
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    return "is no picture" if "cannot identify" in why else why


def _opened(cell: Mapping[str, Any] | None) -> "Image":
    """The decoded picture, turned as its EXIF says."""
    import datasets

    if cell is None or (cell["bytes"] is None and cell["path"] is None):
        raise BadImageError("there is none")
    content = cell["bytes"]
    if content is None and Path(cell["path"]).exists():
        content = Path(cell["path"]).read_bytes()  # a file that is cut short would be left open
    picture: Image = datasets.Image().decode_example({"path": cell["path"], "bytes": content})
    return picture


def _header(cell: Mapping[str, Any] | None) -> tuple[Size, str]:
    """A picture's size, as it is seen, and its mode."""
    from PIL import ExifTags, Image

    content = None if cell is None else cell["bytes"]
    local = cell is not None and cell["path"] is not None and Path(cell["path"]).exists()
    if content is None and not local:
        picture = _opened(cell)
        return (picture.height, picture.width), picture.mode
    assert cell is not None
    with Image.open(cell["path"] if content is None else io.BytesIO(content)) as image:
        if image.format == "PNG" and "exif" not in image.info:
            late = b"eXIf" in (content or Path(cell["path"]).read_bytes())  # it may come after the pixels
            orientation = image.getexif().get(ExifTags.Base.Orientation) if late else None
        else:
            orientation = image.getexif().get(ExifTags.Base.Orientation)
        if orientation not in TURNED:
            return (image.height, image.width), image.mode
        if image.format != "TIFF":
            return (image.width, image.height), image.mode
    turned = _opened(cell)  # whether a TIFF's own size is turned already depends on Pillow's version
    return (turned.height, turned.width), turned.mode


def describe_bad_images(split: "Dataset", column: str, bad: Mapping[int, str]) -> str:
    """The first pictures that cannot be used, in words: the row of each, the end of its file's path, and why."""
    few = dict(sorted(bad.items())[:3])
    cells = _cells(split.select(few), column)
    said = [f"row {row + 1:,} of {len(split):,}{_name(cell)}: {few[row]}" for row, cell in zip(few, cells, strict=True)]
    return "; ".join(said) + (f"; and {len(bad) - len(few):,} more" if len(bad) > len(few) else "")


def _name(cell: Mapping[str, Any] | None) -> str:
    path = (cell or {}).get("path")
    return f" ({'/'.join(Path(path).parts[-2:])})" if path else ""
