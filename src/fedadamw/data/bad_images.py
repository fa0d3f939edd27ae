"""Messages about images of a data set that cannot be used."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedadamw.data.image_decoding import ImageCell, iter_encoded_images
from fedadamw.validation import check

if TYPE_CHECKING:
    from datasets import Dataset


def check_bad_images(place: str, split: "Dataset", column: str, bad: Mapping[int, str], *, skip: bool) -> None:
    """Raise InputError if images are bad and may not be skipped, or if none is left."""
    if not bad:
        return
    description = describe_bad_images(place, split, column, bad)
    check(len(bad) < len(split), f"{description}; none is left")
    check(skip, f"{description}; repair or remove them, or skip them with data.on_bad=skip")


def describe_bad_images(place: str, split: "Dataset", column: str, bad: Mapping[int, str]) -> str:
    """Say how many images of `place` are bad, and of the first three the row, the end of the path and the reason."""
    first = dict(sorted(bad.items())[:3])
    cells = iter_encoded_images(split.select(first), column)
    lines = [
        f"row {row + 1:,} of {len(split):,}{_short_path(cell)}: {first[row]}"
        for row, cell in zip(first, cells, strict=True)
    ]
    more = f"; and {len(bad) - len(first):,} more" if len(bad) > len(first) else ""
    name = f", split {str(split.split)!r}" if split.split else ""
    return f"{place}{name}: {len(bad):,} of {len(split):,} images cannot be used: {'; '.join(lines)}{more}"


def _short_path(cell: ImageCell | None) -> str:
    path = cell["path"] if cell else None
    return f" ({'/'.join(Path(path).parts[-2:])})" if path else ""
