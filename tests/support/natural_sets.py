"""Small data sets in files laid out like the natural ones on the hub: the same columns, types and file names.

The layouts are those of the cards of flwrlabs/femnist, flwrlabs/shakespeare and flwrlabs/fed-isic2019.
"""

import csv
import io
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CHARACTERS = [*string.digits, *string.ascii_uppercase, *string.ascii_lowercase]  # FEMNIST's 62 classes, in its order
SPEECHES = {  # as LEAF names a role: its play, and who speaks
    "THE_TRAGEDY_OF_HAMLET_HAMLET": "To be, or not to be, that is the question: Whether 'tis nobler in the mind to "
    "suffer The slings and arrows of outrageous fortune, Or to take arms against a sea of troubles",
    "AS_YOU_LIKE_IT_JAQUES": "All the world's a stage, And all the men and women merely players; They have their exits "
    "and their entrances, And one man in his time plays many parts",
    "TWELFTH_NIGHT_DUKE": "If music be the food of love, play on, Give me excess of it; that surfeiting, The appetite "
    "may sicken, and so die.",
    "MACBETH_PORTER": "Knock, knock!",
}
WINDOW = 80


def femnist(place: Path, writers: Sequence[int] = (30, 12, 12, 1), seed: int = 0) -> str:
    """A folder with as many characters of each writer: 28 x 28 grey PNG files in Parquet; its path."""
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    generator = np.random.default_rng(seed)
    features = Features(
        {
            "image": ImageFeature(),
            "writer_id": Value("string"),
            "hsf_id": Value("int64"),
            "character": ClassLabel(names=CHARACTERS),
        }
    )
    rows = [
        {
            "image": _picture(generator.integers(0, 256, (28, 28), dtype=np.uint8), "PNG"),
            "writer_id": f"f{writer:04d}_{writer % 50:02d}",
            "hsf_id": writer % 8,
            "character": int(generator.integers(62)),
        }
        for writer, count in enumerate(writers)
        for _ in range(count)
    ]
    _write(Dataset.from_list(rows, features), place / "data/train-00000-of-00001.parquet")
    return str(place)


def shakespeare(place: Path) -> str:
    """A file of all windows of 80 characters of each role's speech, with the next character; its path.

    As in LEAF, a speech begins with a window of spaces, and the window slides by one.
    """
    place.mkdir(parents=True)
    with open(place / "shakespeare.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["character_id", "x", "y"])
        for role, speech in SPEECHES.items():
            padded = " " * WINDOW + speech
            table.writerows([role, padded[i : i + WINDOW], padded[i + WINDOW]] for i in range(len(speech)))
    return str(place / "shakespeare.csv")


def fed_isic(place: Path, centres: Sequence[int] = (12, 8, 6, 5, 4, 3), seed: int = 0) -> str:
    """A folder with as many photos of each centre, in colour and of two sizes, a train and a test file; its path."""
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    generator = np.random.default_rng(seed)
    features = Features(
        {"image": ImageFeature(), "center": Value("int64"), "label": ClassLabel(names=[str(i) for i in range(8)])}
    )
    for split in ("train", "test"):
        rows = [
            {
                "image": _picture(generator.integers(0, 256, (224, 300 - centre, 3), dtype=np.uint8), "JPEG"),
                "center": centre,
                "label": int(generator.integers(8)),
            }
            for centre, count in enumerate(centres)
            for _ in range(count)
        ]
        _write(Dataset.from_list(rows, features), place / f"data/{split}-00000-of-00001.parquet")
    return str(place)


def _picture(pixels: np.ndarray, kind: str) -> dict[str, object]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return {"bytes": file.getvalue(), "path": None}


def _write(rows, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(file)
