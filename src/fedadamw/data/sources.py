"""Data sets by name: a hub id, a folder or a file, as `datasets` reads them; and what their columns hold."""

import logging
import re
import threading
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

from fedadamw.validation import InputError, check

Array = np.ndarray
TEST_SPLITS = ("test", "validation", "valid", "val")
MOST_CLASSES = 100_000  # where labels are numbers
MOST_WITH_POINT = 100  # and where these are written with a point
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
SPLITS = ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval")  # folders of no class
WORDS: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}  # for CSV: else the word None were nothing
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")
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


def read(source: str, config: str | None = None, test_source: str | None = None) -> "DatasetDict":
    """The splits of `source`: a folder, a CSV, JSON lines or Parquet file, or a hub id; `train` is among them.

    test_source: another such, whose train split becomes the split named `test`.
    """
    found = _read("data.source", source, config)
    if "train" not in found:
        raise InputError(f"data.source={source!r} has no split named 'train'; it has {', '.join(found)}")
    if test_source is not None:
        held_out = _read("data.test_source", test_source, None if _is_local(test_source) else config)
        found["test"] = held_out["test"] if "test" in held_out else next(iter(held_out.values()))
    return found


def read_held_out(
    source: str, config: str | None, test_source: str | None, wanted: str | None, usual: str | None = None
) -> "Dataset":
    """The held-out split alone, of `test_source` or else of `source`.

    `wanted`; or `usual`, where there is one of that name; or the only one; or the first of TEST_SPLITS.
    """
    setting, name = ("data.source", source) if test_source is None else ("data.test_source", test_source)
    splits = _read(setting, name, None if test_source and _is_local(name) else config)
    wanted = wanted or (usual if usual in splits else None)
    alone = len(splits) == 1 and not wanted
    return splits[next(iter(splits)) if alone else held_out_split(f"{setting}={name!r}", splits, wanted)]


def _read(setting: str, source: str, config: str | None) -> "DatasetDict":
    import datasets
    from tqdm import tqdm

    path = Path(source).expanduser()
    kind, local = FILES.get(path.suffix), _is_local(source)
    if local and not path.exists():
        raise InputError(f"{setting}={source!r}: no such {'file' if kind else 'folder'}")
    check(not path.is_file() or kind is not None, f"{setting}={source!r}: a file must end in {', '.join(FILES)}")
    check(not path.is_file() or path.stat().st_size > 0, f"{setting}={source!r}: the file is empty")
    datasets.disable_progress_bars()
    tqdm.set_lock(threading.RLock())  # its own would be a semaphore of the system, left behind where a rank is ended
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it announces each retry
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it cannot read is said below
    try:
        if kind is not None and path.is_file():
            return datasets.load_dataset(kind, data_files={"train": str(path)}, **(WORDS if kind == "csv" else {}))
        if local and _is_images(path):
            return datasets.load_dataset(
                "imagefolder", data_dir=str(path), drop_labels=False
            )  # also of one class alone
        if local and (files := _split_files(path)):
            return datasets.load_dataset("parquet", data_files=files)
        words = WORDS if local and config is None and _is_csv(path) else {}
        return datasets.load_dataset(str(path) if local else source, config, **words)
    except Exception as error:  # hub, parser and network errors have no common class
        raise InputError(f"{setting}={source!r} could not be read: {_why(error)}") from error


def _is_local(source: str) -> bool:
    """Whether a source is a folder or a file, and no hub id."""
    return source.startswith((".", "/", "~")) or Path(source).suffix in FILES


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


def held_out_split(place: str, splits: "DatasetDict", wanted: str | None) -> str:
    """The name of the split of `place` to hold out: `wanted`, or the first of TEST_SPLITS that there is."""
    names = (wanted,) if wanted else TEST_SPLITS
    for name in names:
        if name in splits:
            return name
    raise InputError(
        f"{place} has no split named {' or '.join(names)}; it has {', '.join(splits)}: "
        "name one with data.test_split, or hold out some training samples with data.validation"
    )


def check_columns(place: str, split: "Dataset", names: Sequence[str | None]) -> None:
    """Raise InputError where one of `names` is no column of `split`, which is from `place`."""
    for name in names:
        if name and name not in split.features:
            raise InputError(f"{place} has no column {name!r}; it has {', '.join(split.features)}")


def find_label_column(split: "Dataset") -> str | None:
    """The column that holds the labels: the first class label, or the one called so."""
    import datasets

    found = next((n for n, f in split.features.items() if isinstance(f, datasets.ClassLabel)), None)
    return found or ("label" if "label" in split.features else None)


def groups_of(split: "Dataset", column: str | None) -> Array | None:
    """The natural clients (n,) that `column` names."""
    return None if column is None else np.asarray(split[column])


def classes_of(train: "Dataset", column: str) -> tuple[str, ...]:
    """Class names, whether the column is a class label, numbers from 0 or words."""
    names = getattr(train.features[column], "names", None)
    if names is not None:
        return tuple(names)
    values = np.unique(_values(train, column))
    if np.issubdtype(values.dtype, np.integer):
        check(int(values.max()) < MOST_CLASSES, f"column {column!r} holds {values.max()}: no number of a class")
        return tuple(str(c) for c in range(int(values.max()) + 1))
    odd = [value for value in values.tolist() if not NUMBER.fullmatch(str(value))]
    mixed = len(values) > 10 * max(1, len(odd)) and bool(odd)
    check(not mixed, f"column {column!r} holds numbers, but for {_some(odd)}")
    return tuple(str(v) for v in values)


def labels_of(split: "Dataset", column: str, classes: tuple[str, ...]) -> Array:
    """Labels (n,) as numbers of `classes`."""
    values = _values(split, column)
    numbers = np.issubdtype(values.dtype, np.integer)
    names = getattr(split.features[column], "names", None)
    if numbers and names is not None and tuple(names) != classes:
        values = _renamed(values, column, names, classes)
    elif numbers and names is None:
        numbers = _are_positions(values, column, classes)
    labels = values.astype(np.int64) if numbers else _positions(values.astype(str), classes)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        raise InputError(
            f"column {column!r} holds {values[wrong[0]].item()!r}, which is not one of the {len(classes)} "
            f"training classes ({_some(classes)})"
        )
    return labels


def _are_positions(values: Array, column: str, classes: tuple[str, ...]) -> bool:
    """Whether numbers without names count `classes`: they do where no class is called by a number."""
    if classes == tuple(str(i) for i in range(len(classes))):
        return True
    if set(classes) & {str(value) for value in np.unique(values)}:
        return False  # classes some of which are words, in a file that has the others alone
    if not _unnamed(classes):
        said = f"column {column!r} holds numbers, which are taken for the classes in their order: {_some(classes)}"
        warnings.warn(said, stacklevel=2)
    return True


def _unnamed(classes: Sequence[str]) -> bool:
    """Whether these are the classes of a model that was not told their names."""
    return all(name.startswith("LABEL_") for name in classes)


def _renamed(values: Array, column: str, names: Sequence[str], classes: tuple[str, ...]) -> Array:
    """Labels that number `names` as numbers of `classes`, which have other names or another order."""
    if _unnamed(classes) and len(names) <= len(classes):
        return values
    number = {name.lower(): i for i, name in enumerate(classes)}
    missing = [name for name in names if name.lower() not in number]
    if missing:
        raise InputError(
            f"column {column!r} has a class {missing[0]!r}, which is not one of the {len(classes)} training classes "
            f"({_some(classes)})"
        )
    new = np.array([number[name.lower()] for name in names], dtype=np.int64)
    return np.where((values >= 0) & (values < len(names)), new[np.clip(values, 0, len(names) - 1)], values)


def _values(split: "Dataset", column: str) -> Array:
    """A column as an array; InputError where a row of it is empty."""
    values: list[Any] = split[column][:]
    if None in values:
        raise InputError(f"column {column!r} has nothing in row {values.index(None) + 1:,} of {len(values):,}")
    odd = next((value for value in values[:1] if not isinstance(value, str | int | float)), None)
    check(odd is None, f"column {column!r} holds {str(odd)[:60]} where a class is wanted: a word or a number")
    array = np.asarray(values)
    if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
        row = int(np.flatnonzero(np.isnan(array))[0])
        raise InputError(f"column {column!r} has no number in row {row + 1:,} of {len(values):,}")
    return array.astype(np.int64) if array.dtype == bool or _count_classes(array) else array


def _count_classes(numbers: Array) -> bool:
    """Whether numbers with a point (1.0) are classes, written so since a row of theirs was missing once."""
    if not np.issubdtype(numbers.dtype, np.floating) or not len(numbers):
        return False
    return bool((numbers == np.round(numbers)).all() and numbers.min() >= 0 and numbers.max() < MOST_WITH_POINT)


def has_fractions(split: "Dataset", column: str) -> bool:
    """Whether a column holds numbers that are to be predicted: with a point, and not all of them small whole ones."""
    fractional = getattr(split.features[column], "dtype", "").startswith("float")
    return fractional and not _count_classes(np.asarray(split[column][:], dtype=np.float64))


def _positions(values: Array, classes: tuple[str, ...]) -> Array:
    number = {name: i for i, name in enumerate(classes)}
    return np.array([number.get(value, -1) for value in values], dtype=np.int64)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 10 else f"{', '.join(names[:9])}, ... {names[-1]}"
