"""Read the splits of a data set with `datasets`: a hub id, a folder or a file."""

import logging
import os
import re
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

from fedadamw.validation import InputError, check, parse_path

TEST_SPLITS = ("test", "validation", "valid", "val")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
# folder names that are not classes
SPLIT_NAMES = ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval")
CSV_OPTIONS: dict[str, bool | list[str]] = {"keep_default_na": False, "na_values": [""]}  # "None" is a word
FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def read_splits(
    source: str, config: str | None = None, test_source: str | None = None, every: int = 1
) -> "DatasetDict":
    """Return the splits of `source`: a folder, a CSV, JSON lines or Parquet file, or a hub id; `train` is required.

    test_source: another source, whose `test` or else first split becomes the split `test`. every: see DataSettings.
    """
    splits = _read("data.source", source, config)
    if "train" not in splits:
        raise InputError(f"data.source={source!r} has no split named 'train'; it has {', '.join(splits)}")
    if every > 1:
        splits["train"] = splits["train"].select(range(0, len(splits["train"]), every))
    if test_source is not None:
        held_out = _read("data.test_source", test_source, None if is_local(test_source) else config)
        splits["test"] = held_out["test"] if "test" in held_out else next(iter(held_out.values()))
    return splits


def read_held_out(
    source: str, config: str | None, test_source: str | None, wanted: str | None, usual: str | None = None
) -> "Dataset":
    """Return the held-out split of `test_source`, or else of `source`.

    The first that exists of: `wanted`, `usual`, the only split, TEST_SPLITS.
    """
    setting, name = ("data.source", source) if test_source is None else ("data.test_source", test_source)
    splits = _read(setting, name, None if test_source and is_local(name) else config)
    wanted = wanted or (usual if usual in splits else None)
    alone = len(splits) == 1 and not wanted
    return splits[next(iter(splits)) if alone else choose_held_out_split(f"{setting}={name!r}", splits, wanted)]


def read_file(file: str) -> "Dataset":
    """Return the rows of one CSV, JSON lines or Parquet file."""
    return _read("FILE", file, None)["train"]


def _read(setting: str, source: str, config: str | None) -> "DatasetDict":
    import datasets
    from tqdm import tqdm

    local = is_local(source)
    path = parse_path(setting, source) if local else Path(source)
    kind = FORMATS.get(path.suffix.lower())
    if local:
        _check_path(setting, source, path)
    datasets.disable_progress_bars()
    tqdm.set_lock(threading.RLock())  # the default is a system semaphore, which a killed rank leaks
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs each retry
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # errors are reported below
    try:
        if local and path.is_file():
            return datasets.load_dataset(
                kind, data_files={"train": str(path)}, **(CSV_OPTIONS if kind == "csv" else {})
            )
        if local and _is_image_folder(path):
            splits = datasets.load_dataset("imagefolder", data_dir=str(path), drop_labels=False)  # even with one class
            return datasets.DatasetDict({name: _drop_foreign_classes(split) for name, split in splits.items()})
        if local and (files := _find_split_files(path)):
            return datasets.load_dataset("parquet", data_files=files)
        words = CSV_OPTIONS if local and config is None and _is_csv_folder(path) else {}
        return datasets.load_dataset(str(path) if local else source, config, **words)
    except Exception as error:  # hub, parser and network errors have no common class
        raise InputError(f"{setting}={source!r} could not be read: {_describe_error(error)}") from error


def _check_path(setting: str, source: str, path: Path) -> None:
    """Raise InputError unless `path`, which `source` names, is a folder or a file of a known format."""
    kind = FORMATS.get(path.suffix.lower())
    check(path.exists(), f"{setting}={source!r}: no such {'file' if kind else 'folder'}")
    if path.is_file():
        check(kind is not None, f"{setting}={source!r}: a file must end in {', '.join(FORMATS)}")
        check(path.stat().st_size > 0, f"{setting}={source!r}: the file is empty")


def is_local(source: str) -> bool:
    """Whether a source is a folder or a file rather than a hub id; a plain name counts if it exists."""
    is_path = source.startswith((".", "/", "~")) or Path(source).suffix.lower() in FORMATS
    return is_path or (bool(source.strip()) and os.path.exists(source))  # noqa: PTH110  (Path.exists raises if a name is too long)


def _is_csv_folder(folder: Path) -> bool:
    """Whether a folder holds CSV files only."""
    return {path.suffix for path in folder.iterdir() if not path.name.startswith(".")} == {".csv"}


def _is_image_folder(folder: Path) -> bool:
    """Whether a folder's first file is an image in a folder of its class."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    first = next(files, None)
    if first is None or first.suffix.lower() not in IMAGE_SUFFIXES or any(folder.rglob("metadata.*")):
        return False
    return first.parent != folder and first.parent.name.lower() not in SPLIT_NAMES


def _drop_foreign_classes(split: "Dataset") -> "Dataset":
    """Remove the classes that a split has no folder of; `datasets` gives each split the classes of all."""
    import datasets

    if "label" not in split.features:
        return split
    names, numbers = split.features["label"].names, np.asarray(split["label"][:])
    present, places = np.unique(numbers, return_inverse=True)
    if len(present) == len(names):
        return split
    classes = datasets.ClassLabel(names=[names[number] for number in present])
    return split.remove_columns("label").add_column("label", places, feature=classes)


def _find_split_files(folder: Path) -> dict[str, list[str]]:
    """Return the Parquet files of each split if several are held out under one prefix, as MNLI's two.

    `datasets` would merge these into one split. {} otherwise: it finds the other splits itself.
    """
    files: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.parquet")):
        files.setdefault(re.sub(r"-\d{5}(-of-\d{5})?$", "", path.stem), []).append(str(path))
    prefixes = Counter(name.partition("_")[0] for name in files)
    several = {prefix for prefix, count in prefixes.items() if count > 1}
    return files if several and several <= set(SPLIT_NAMES) - {"train", "training"} else {}


def _describe_error(error: Exception) -> str:
    """Return why a source could not be read, in one line."""
    from datasets import config
    from datasets.exceptions import DatasetGenerationError

    cause: BaseException = error
    while isinstance(cause, DatasetGenerationError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if "corresponds to no data" in str(cause):
        return "it has no rows"
    if isinstance(cause, OSError) and cause.filename and Path(config.HF_DATASETS_CACHE).is_relative_to(cause.filename):
        return f"its cache cannot be written: {cause}; set HF_HOME to a folder that can"
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


def choose_held_out_split(place: str, splits: "DatasetDict", wanted: str | None) -> str:
    """Return the name of the held-out split of `place`: `wanted`, or the first of TEST_SPLITS that exists."""
    names = (wanted,) if wanted else TEST_SPLITS
    for name in names:
        if name in splits:
            return name
    raise InputError(
        f"{place} has no split named {' or '.join(names)}; it has {', '.join(splits)}: "
        "name one with data.test_split, or hold out some training samples with data.validation"
    )
