"""Data sets by name: a hub id, a folder or a file, as `datasets` reads them."""

import logging
import os
import re
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

from fedadamw.validation import InputError, check, parse_path

Array = np.ndarray
TEST_SPLITS = ("test", "validation", "valid", "val")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
SPLITS = ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval")  # folders of no class
WORDS: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}  # for CSV: else the word None were nothing
FILES = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


class Samples(Protocol):
    """One split of a data set, by sample: what a partition and a report need of it."""

    @property
    def labels(self) -> Array:
        """The class of each sample, (n,) int64."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""

    @property
    def groups(self) -> Array | None:
        """The natural client of each sample, (n,), where a column of the data names them."""

    @property
    def fingerprint(self) -> str:
        """A digest of every sample and label."""

    def __len__(self) -> int: ...


def read_splits(source: str, config: str | None = None, test_source: str | None = None) -> "DatasetDict":
    """The splits of `source`: a folder, a CSV, JSON lines or Parquet file, or a hub id; `train` is among them.

    test_source: another such, whose train split becomes the split named `test`.
    """
    found = _read("data.source", source, config)
    if "train" not in found:
        raise InputError(f"data.source={source!r} has no split named 'train'; it has {', '.join(found)}")
    if test_source is not None:
        held_out = _read("data.test_source", test_source, None if is_local(test_source) else config)
        found["test"] = held_out["test"] if "test" in held_out else next(iter(held_out.values()))
    return found


def read_held_out(
    source: str, config: str | None, test_source: str | None, wanted: str | None, usual: str | None = None
) -> "Dataset":
    """The held-out split alone, of `test_source` or else of `source`.

    `wanted`; or `usual`, where there is one of that name; or the only one; or the first of TEST_SPLITS.
    """
    setting, name = ("data.source", source) if test_source is None else ("data.test_source", test_source)
    splits = _read(setting, name, None if test_source and is_local(name) else config)
    wanted = wanted or (usual if usual in splits else None)
    alone = len(splits) == 1 and not wanted
    return splits[next(iter(splits)) if alone else choose_held_out_split(f"{setting}={name!r}", splits, wanted)]


def _read(setting: str, source: str, config: str | None) -> "DatasetDict":
    import datasets
    from tqdm import tqdm

    local = is_local(source)
    path = parse_path(setting, source) if local else Path(source)
    kind = FILES.get(path.suffix)
    if local:
        _check_place(setting, source, path)
    datasets.disable_progress_bars()
    tqdm.set_lock(threading.RLock())  # its own would be a semaphore of the system, left behind where a rank is ended
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it announces each retry
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it cannot read is said below
    try:
        if local and path.is_file():
            return datasets.load_dataset(kind, data_files={"train": str(path)}, **(WORDS if kind == "csv" else {}))
        if local and _is_images(path):
            found = datasets.load_dataset(
                "imagefolder", data_dir=str(path), drop_labels=False
            )  # also of one class alone
            return datasets.DatasetDict({name: _with_own_classes(split) for name, split in found.items()})
        if local and (files := _split_files(path)):
            return datasets.load_dataset("parquet", data_files=files)
        words = WORDS if local and config is None and _is_csv(path) else {}
        return datasets.load_dataset(str(path) if local else source, config, **words)
    except Exception as error:  # hub, parser and network errors have no common class
        raise InputError(f"{setting}={source!r} could not be read: {_why(error)}") from error


def _check_place(setting: str, source: str, path: Path) -> None:
    """Raise InputError where `path`, which `source` names, is no folder and no file of a known kind."""
    kind = FILES.get(path.suffix)
    check(path.exists(), f"{setting}={source!r}: no such {'file' if kind else 'folder'}")
    if path.is_file():
        check(kind is not None, f"{setting}={source!r}: a file must end in {', '.join(FILES)}")
        check(path.stat().st_size > 0, f"{setting}={source!r}: the file is empty")


def is_local(source: str) -> bool:
    """Whether a source is a folder or a file, and no hub id: one that exists is meant by its plain name, too."""
    signed = source.startswith((".", "/", "~")) or Path(source).suffix in FILES
    return signed or (bool(source.strip()) and os.path.exists(source))  # noqa: PTH110  (Path.exists raises if a name is too long)


def _is_csv(folder: Path) -> bool:
    """Whether a folder holds CSV files and nothing that says or is something else."""
    return {path.suffix for path in folder.iterdir() if not path.name.startswith(".")} == {".csv"}


def _is_images(folder: Path) -> bool:
    """Whether a folder is one of images in folders of their classes, as far as its first file tells."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    first = next(files, None)
    if first is None or first.suffix.lower() not in IMAGES or any(folder.rglob("metadata.*")):
        return False
    return first.parent != folder and first.parent.name.lower() not in SPLITS


def _with_own_classes(split: "Dataset") -> "Dataset":
    """The split with the classes that it has folders of; `datasets` gives all splits those of any."""
    import datasets

    if "label" not in split.features:
        return split
    names, numbers = split.features["label"].names, np.asarray(split["label"][:])
    own, places = np.unique(numbers, return_inverse=True)
    if len(own) == len(names):
        return split
    classes = datasets.ClassLabel(names=[names[number] for number in own])
    return split.remove_columns("label").add_column("label", places, feature=classes)


def _split_files(folder: Path) -> dict[str, list[str]]:
    """The Parquet files of each split by their names, where several are of one held-out sort, as MNLI's two.

    {} elsewhere: `datasets`, which would make one split of those, knows the others itself.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.parquet")):
        found.setdefault(re.sub(r"-\d{5}(-of-\d{5})?$", "", path.stem), []).append(str(path))
    sorts = Counter(name.partition("_")[0] for name in found)
    several = {sort for sort, count in sorts.items() if count > 1}
    return found if several and several <= set(SPLITS) - {"train", "training"} else {}


def _why(error: Exception) -> str:
    """Why a source could not be read, in one line."""
    from datasets.exceptions import DatasetGenerationError

    cause: BaseException = error
    while isinstance(cause, DatasetGenerationError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if "corresponds to no data" in str(cause):
        return "it has no rows"
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


def choose_held_out_split(place: str, splits: "DatasetDict", wanted: str | None) -> str:
    """The name of the split of `place` to hold out: `wanted`, or the first of TEST_SPLITS that there is."""
    names = (wanted,) if wanted else TEST_SPLITS
    for name in names:
        if name in splits:
            return name
    raise InputError(
        f"{place} has no split named {' or '.join(names)}; it has {', '.join(splits)}: "
        "name one with data.test_split, or hold out some training samples with data.validation"
    )
