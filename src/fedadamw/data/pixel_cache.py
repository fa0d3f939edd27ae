"""Cache the decoded pixels of a split in a file that is memory-mapped: all processes of a machine share one copy.

Processes that need the same pixels at once wait for the first, which decodes on all cores. Caches that were not used
for a while go when a new one would make the folder large.
"""

import hashlib
import json
import math
import mmap
import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedadamw.data.image_decoding import DecodeSummary, PixelFormat, decode_images
from fedadamw.data.image_survey import ImageSurvey, survey_images
from fedadamw.data.samples import Array
from fedadamw.io.cache_folder import hold_lock, mark_used, remove_unused
from fedadamw.io.disk import reserve_space

if TYPE_CHECKING:
    from datasets import Dataset

CACHE_VERSION = 2  # Pillow's version is part of the key, too
DAMAGE = (OSError, ValueError, EOFError, KeyError, TypeError, IndexError, AttributeError)  # from reading a bad file


def load_survey(split: "Dataset", column: str) -> ImageSurvey:
    """Return what the headers of a split's images say; cached unless images are bad, which may be repaired."""
    cache = _cache_path(split, column, "survey").with_suffix(".json")
    try:
        return ImageSurvey.from_json(cache.read_text())
    except DAMAGE:
        survey = survey_images(split, column)
    if not survey.bad:
        _write_if_possible(cache, survey.to_json())
    return survey


def load_pixels(split: "Dataset", column: str, target: PixelFormat) -> tuple[Array, DecodeSummary]:
    """Return the usable images as bytes (n, c, h, w) in the target format, and what was noticed.

    They are decoded into a file, or into memory if the disk has no space. The file is kept for later runs unless
    images are bad, which may be repaired.
    """
    cache = _cache_path(split, column, _format_key(target))
    with suppress(*DAMAGE):
        return _read_cache(cache, len(split), target)
    with hold_lock(cache.with_suffix(".lock")):
        with suppress(*DAMAGE):  # another process may have written it meanwhile
            return _read_cache(cache, len(split), target)
        remove_unused(cache.parent)
        decoded = _decode_to_cache(split, column, target, cache)
    if decoded is not None:
        return decoded
    pixels = _new_array((len(split), *target.shape))
    summary = decode_images(split, column, target, pixels)
    return pixels[: len(split) - len(summary.bad)], summary


def _cache_path(split: "Dataset", column: str, content: str) -> Path:
    """Return the cache file for one kind of content of a column; nothing from the data is part of its name."""
    import datasets
    import PIL

    key = json.dumps([CACHE_VERSION, PIL.__version__, split._fingerprint, column, content])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return Path(datasets.config.HF_DATASETS_CACHE) / "fedadamw-pixels" / f"{name}.npy"


def _format_key(target: PixelFormat) -> str:
    """Return the cache key of a format; its words are fixed, so that existing caches stay valid."""
    resize = target.resize
    fit = f"Fit(resize={resize.resize!r}, crop={resize.crop!r}, resample={resize.resample!r})"
    return f"Form(grey={target.grey!r}, size={target.size!r}, fit={fit})"


def _read_cache(cache: Path, rows: int, target: PixelFormat) -> tuple[Array, DecodeSummary]:
    """Read what `_decode_to_cache` wrote; raise one of DAMAGE if it is not complete."""
    facts = json.loads(cache.with_suffix(".json").read_text())
    summary = DecodeSummary({}, int(facts["coloured"]), int(facts["resized"]), facts["brightest"])
    pixels = np.load(cache, mmap_mode="r")
    if pixels.shape != (rows, *target.shape) or pixels.dtype != np.uint8:
        raise ValueError(f"{cache} holds {pixels.shape}")
    mark_used(cache)
    return pixels, summary


def _decode_to_cache(
    split: "Dataset", column: str, target: PixelFormat, cache: Path
) -> tuple[Array, DecodeSummary] | None:
    """Decode into the cache; return None if the disk has no space for it.

    The file is written under a temporary name and renamed, since several processes may do so at once. With bad images
    it is only unlinked: it disappears with the array.
    """
    temporary = _temporary_path(cache)
    try:
        pixels = _create_file(temporary, (len(split), *target.shape))
        if pixels is None:
            return None
        summary = decode_images(split, column, target, pixels)  # its errors are of the data, not of this disk
        if summary.bad:
            return pixels[: len(split) - len(summary.bad)], summary
        return _publish(pixels, summary, temporary, cache)
    finally:
        temporary.unlink(missing_ok=True)


def _publish(
    pixels: np.memmap, summary: DecodeSummary, temporary: Path, cache: Path
) -> tuple[Array, DecodeSummary] | None:
    """Rename the temporary file, which holds `pixels`, to the cache; return None if the disk does not accept it."""
    try:
        pixels.flush()
        os.replace(temporary, cache)
    except OSError:
        return None
    _write_if_possible(cache.with_suffix(".json"), json.dumps(asdict(summary)))
    return np.load(cache, mmap_mode="r"), summary


def _create_file(path: Path, shape: tuple[int, ...]) -> np.memmap | None:
    """Return an array in a new file; None if the disk has no space for it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < 1.1 * math.prod(shape):
            return None
        pixels: np.memmap = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        reserve_space(path)
    except OSError:
        return None
    return pixels


def _new_array(shape: tuple[int, ...]) -> Array:
    """Return an array in memory that forks of this process share."""
    return np.frombuffer(mmap.mmap(-1, max(math.prod(shape), 1)), np.uint8, math.prod(shape)).reshape(shape)


def _write_if_possible(path: Path, text: str) -> None:
    """Write a small cache file atomically; do nothing if the disk does not accept it."""
    temporary = _temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)


def _temporary_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}")
