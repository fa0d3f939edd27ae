"""What is known of the data before they are read: how many samples, how large, of how many classes."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from fedadamw.data.sources import TEST_SPLITS, is_local
from fedadamw.models.pretrained import DEFAULT_LENGTH, Pretrained
from fedadamw.settings import glue
from fedadamw.settings.data import AUTO_LENGTH, LANGUAGE
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import InputError, parse_path

DIGITS = "digits"
DIGITS_SIZE = 8
DIGITS_ROWS = {"train": 1437, "test": 360}  # every fifth is held out
USUAL_SIZE, USUAL_CLASSES = 32, 10  # assumed where nothing says so
Shape = tuple[int, int, int]  # channels, height, width


class DataShape(NamedTuple):
    """What the plan needs to know of the data; `assumed` says in words what is not known."""

    classes: int
    samples: int | None = None  # to train on
    held_out: int | None = None
    image: Shape | None = None
    assumed: tuple[str, ...] = ()


class Found(NamedTuple):
    """What the footers of Parquet files say."""

    rows: Mapping[str, int]  # of each split
    classes: int | None
    image: Shape | None


def find_shape(experiment: Experiment) -> DataShape:
    """Return the shape of the experiment's data, from its settings and from the footers of local Parquet files."""
    data = experiment.data
    if not data.is_text and data.source == DIGITS:
        size = data.image_size or DIGITS_SIZE
        known = Found(DIGITS_ROWS, USUAL_CLASSES, (1, size, size))
    else:
        known = _read_footers(experiment) or Found({}, None, None)
    assumed = [] if known.rows else ["the number of samples is not known before the data are read"]
    classes, image = known.classes, None
    if data.task in glue.TASKS:
        classes = classes or (3 if data.task == "mnli" else 2)
    if classes is None and data.task != LANGUAGE:
        classes = USUAL_CLASSES
        assumed.append(f"{classes} classes are assumed")
    if not data.is_text:
        image = _image_shape(experiment, known.image)
        if known.image is None:
            assumed.append(f"images of {' x '.join(map(str, image))} are assumed; data.image_size sets it")
    samples, held_out = _count(experiment, known.rows)
    return DataShape(classes or 1, samples, held_out, image, tuple(assumed))


def _image_shape(experiment: Experiment, known: Shape | None) -> Shape:
    channels, height, width = known or (3, USUAL_SIZE, USUAL_SIZE)
    mode, size = experiment.data.image_mode, experiment.data.image_size
    channels = {"grey": 1, "rgb": 3}.get(mode, channels)
    return (channels, size, size) if size else (channels, height, width)


def _count(experiment: Experiment, rows: Mapping[str, int]) -> tuple[int | None, int | None]:
    """Return the training and held-out samples, after data.every, validation, max_train and max_test."""
    data, train = experiment.data, rows.get("train")
    held_out = next((rows[name] for name in (data.test_split or "", *TEST_SPLITS) if name in rows), None)
    if train is not None:
        train = -(-train // data.every)
    if train is not None and data.validation:
        held_out = round(train * data.validation)
        train -= held_out
    if data.max_train and train is not None:
        train = min(train, data.max_train)
    if data.max_test and held_out is not None and not data.validation:
        held_out = min(held_out, data.max_test)
    return train, held_out


def _read_footers(experiment: Experiment) -> Found | None:
    """Return what the Parquet files of a local folder say, None if there are none that can be read."""
    data = experiment.data
    if not is_local(data.source):
        return None
    place = parse_path("data.source", data.source)
    files = [place] if place.suffix == ".parquet" else sorted(place.rglob("*.parquet")) if place.is_dir() else []
    rows: dict[str, int] = {}
    try:
        for file in files:
            split = "train" if file == place else re.split(r"[-_.]", file.stem)[0]
            rows[split] = rows.get(split, 0) + _open(file).metadata.num_rows
        first = next((file for file in files if file == place or file.stem.startswith("train")), None)
        return None if first is None else _describe(first, rows, experiment)
    except (OSError, ValueError, KeyError, ImportError):
        return None  # reading the data says what is wrong with them


def _open(file: Path) -> Any:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(file)


def _describe(file: Path, rows: Mapping[str, int], experiment: Experiment) -> Found:
    parquet = _open(file)
    about = json.loads((parquet.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
    features = about.get("info", {}).get("features", {})
    labels = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    label = experiment.data.label_column or next(iter(labels), None)
    names = features.get(label, {}).get("names")
    images = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    column = experiment.data.image_column or next(iter(images), None)
    image = None if column is None or experiment.data.is_text else _first_image(parquet, column)
    return Found(rows, len(names) if names else None, image)


def _first_image(parquet: Any, column: str) -> Shape:
    from PIL import Image

    row = next(parquet.iter_batches(batch_size=1, columns=[column])).to_pylist()[0]
    with Image.open(BytesIO(row[column]["bytes"])) as image:
        return (1 if image.mode in ("L", "1") else 3, image.height, image.width)


def find_max_length(experiment: Experiment, pretrained: Pretrained) -> int:
    """Return the tokens of the longest text, of which every text is taken to be; without a tokenizer, the model's."""
    wanted = experiment.data.max_length
    with suppress(InputError):
        return pretrained.max_length(wanted)
    positions = getattr(pretrained.config, "max_position_embeddings", None) or DEFAULT_LENGTH
    return wanted if isinstance(wanted, int) else positions if wanted is None else min(positions, AUTO_LENGTH)
