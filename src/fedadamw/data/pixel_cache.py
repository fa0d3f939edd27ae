"""The pixels of a split, decoded once into a file that is mapped: the processes of a machine hold it once."""

import hashlib
import json
import math
import os
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedadamw.data.image_decoding import DecodeSummary, PixelFormat, Survey, decode
from fedadamw.data.sources import Array
from fedadamw.io.disk import reserve_space

if TYPE_CHECKING:
    from datasets import Dataset

VERSION = 2  # of what is in the cache, besides Pillow's
DAMAGE = (OSError, ValueError, EOFError, KeyError, TypeError, IndexError, AttributeError)  # of a file of the cache


def load_survey(split: "Dataset", column: str) -> Survey:
    """What the headers of a split's pictures say, looked at once; again where some were bad, which may be mended."""
    cache = _cache(split, column, "survey").with_suffix(".json")
    try:
        return Survey.from_json(cache.read_text())
    except DAMAGE:
        found = Survey.of(split, column)
    if not found.bad:
        _write(cache, found.to_json())
    return found


def load_pixels(split: "Dataset", column: str, form: PixelFormat) -> tuple[Array, DecodeSummary]:
    """The pictures that can be used as bytes (n, c, h, w) in `form`; and which cannot, with all else that was found.

    They are decoded into a file, never all of them in memory; or in memory where there is no disk for it. The file is
    kept for the next time, unless pictures are bad: these may be mended until then.
    """
    cache = _cache(split, column, repr(form))
    try:
        return _read(cache, len(split), form)
    except DAMAGE:
        found = _keep(split, column, form, cache)
    if found is not None:
        return found
    pixels = np.empty((len(split), *form.shape), np.uint8)
    notes = decode(split, column, form, pixels)
    return pixels[: len(split) - len(notes.bad)], notes


def _cache(split: "Dataset", column: str, wanted: str) -> Path:
    """The file of what is `wanted` of a column; its name holds nothing that the data can choose."""
    import datasets
    import PIL

    facts = [VERSION, PIL.__version__, split._fingerprint, column, wanted]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    return Path(datasets.config.HF_DATASETS_CACHE) / "fedadamw-pixels" / f"{key}.npy"


def _read(cache: Path, rows: int, form: PixelFormat) -> tuple[Array, DecodeSummary]:
    """What `_keep` wrote; one of DAMAGE where it is not whole."""
    facts = json.loads(cache.with_suffix(".json").read_text())
    notes = DecodeSummary({}, int(facts["coloured"]), int(facts["resized"]), facts["brightest"])
    pixels = np.load(cache, mmap_mode="r")
    if pixels.shape != (rows, *form.shape) or pixels.dtype != np.uint8:
        raise ValueError(f"{cache} holds {pixels.shape}")
    return pixels, notes


def _keep(split: "Dataset", column: str, form: PixelFormat, cache: Path) -> tuple[Array, DecodeSummary] | None:
    """Decode into the cache; None where there is no disk for it.

    The file is made aside and renamed, since several processes may do it at once. With bad pictures it is not: it then
    has no name, and is gone with the array.
    """
    aside = _aside(cache)
    try:
        pixels = _new_file(aside, (len(split), *form.shape))
        if pixels is None:
            return None
        notes = decode(split, column, form, pixels)  # it raises what reading the data raises: no fault of this disk
        if notes.bad:
            return pixels[: len(split) - len(notes.bad)], notes
        return _put(pixels, notes, aside, cache)
    finally:
        aside.unlink(missing_ok=True)


def _put(pixels: np.memmap, notes: DecodeSummary, made: Path, cache: Path) -> tuple[Array, DecodeSummary] | None:
    """Make the file `made`, which holds `pixels`, the one of the cache; None where the disk did not take it."""
    try:
        pixels.flush()
        os.replace(made, cache)
    except OSError:
        return None
    _write(cache.with_suffix(".json"), json.dumps(asdict(notes)))
    return np.load(cache, mmap_mode="r"), notes


def _new_file(path: Path, shape: tuple[int, ...]) -> np.memmap | None:
    """An array in a new file, on a disk that has the space for it; None where there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < 1.1 * math.prod(shape):
            return None
        pixels: np.memmap = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        reserve_space(path)
    except OSError:
        return None
    return pixels


def _write(path: Path, text: str) -> None:
    """Write a small file of the cache whole, or not at all where the disk does not take it."""
    aside = _aside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text)
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}")
