"""Read the headers of all images of a split: their sizes and colours, without decoding them."""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedadamw.data.image_decoding import BadImageError, ImageCell, is_grey, iter_encoded_images, open_image, run_decoder
from fedadamw.data.row_parts import map_parts
from fedadamw.models.resizing import Size

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class ImageSurvey:
    """What the headers of a split's images say."""

    colour: bool  # whether any image has colour
    smallest: Size | None  # by area
    largest: Size | None
    same: bool  # whether all are of one size
    bad: dict[int, str]  # rows of images that cannot be opened, and why

    @staticmethod
    def from_json(text: str) -> "ImageSurvey":
        """Read the text of `to_json`; raise ValueError, KeyError or TypeError if it is damaged."""
        data = json.loads(text)
        sizes = {end: data[end] and (int(data[end][0]), int(data[end][1])) for end in ("smallest", "largest")}
        bad = {int(row): str(why) for row, why in data["bad"].items()}
        return ImageSurvey(colour=bool(data["colour"]), same=bool(data["same"]), bad=bad, **sizes)

    def to_json(self) -> str:
        """Return the survey as JSON."""
        return json.dumps(asdict(self))


def survey_images(split: "Dataset", column: str) -> ImageSurvey:
    """Read the header of every image of a split; on all cores."""
    sizes, modes, bad = set[Size](), set[str](), dict[int, str]()
    for found_sizes, found_modes, found_bad in map_parts(lambda rows: _survey_rows(split, column, rows), len(split)):
        sizes |= {(height, width) for height, width in found_sizes}
        modes |= set(found_modes)
        bad |= dict(found_bad)
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    smallest, largest = (by_area[0], by_area[-1]) if by_area else (None, None)
    return ImageSurvey(not all(map(is_grey, modes)), smallest, largest, len(sizes) < 2, bad)


def _survey_rows(split: "Dataset", column: str, rows: range) -> tuple[list[Size], list[str], list[tuple[int, str]]]:
    """Return the sizes and modes of the images of some rows, and which are bad, and why."""
    sizes, modes, bad = set(), set(), []
    for row, cell in zip(rows, iter_encoded_images(split, column, rows), strict=True):
        try:
            size, mode = run_decoder(_read_header, cell)
        except BadImageError as error:
            bad.append((row, str(error)))
        else:
            sizes.add(size)
            modes.add(mode)
    return list(sizes), list(modes), bad


def _read_header(cell: ImageCell | None) -> tuple[Size, str]:
    """Return an image's size after its EXIF rotation, and its mode."""
    from PIL import Image

    if cell is None or not _is_local(cell):
        return _size_and_mode(open_image(cell))
    source = cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])
    assert source is not None
    with Image.open(source) as image:
        if _read_orientation(image, cell) not in TRANSPOSED:
            return _size_and_mode(image)
        if image.format != "TIFF":
            return (image.width, image.height), image.mode
    return _size_and_mode(open_image(cell))  # a TIFF's size is rotated already in some versions of Pillow


def _is_local(cell: ImageCell) -> bool:
    return cell["bytes"] is not None or (cell["path"] is not None and Path(cell["path"]).exists())


def _read_orientation(image: "Image", cell: ImageCell) -> int | None:
    """Return an image's EXIF orientation; a PNG may have its EXIF data after the pixels."""
    from PIL import ExifTags

    if image.format == "PNG" and "exif" not in image.info:
        content = cell["bytes"] or Path(cell["path"] or "").read_bytes()
        if b"eXIf" not in content:
            return None
    orientation: int | None = image.getexif().get(ExifTags.Base.Orientation)
    return orientation


def _size_and_mode(image: "Image") -> tuple[Size, str]:
    return (image.height, image.width), image.mode
