"""Full disks: reported in one line that names the file, and detected before a memory-mapped file is written to."""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedadamw.validation import InputError, check

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, quota exceeded, file too large
NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # some file systems cannot reserve space
CHUNK = 2**20  # bytes


class DiskFullError(OSError):
    """A file was not written because there is no space for it."""


@contextmanager
def report_full_disk(path: Path) -> Iterator[None]:
    """Context for writing the file or folder `path`: raises DiskFullError if there is no space for it."""
    try:
        yield
    except Exception as error:
        code = _get_errno(error)
        if code not in FULL:
            raise
        raise DiskFullError(f"{path}: not written, {os.strerror(code).lower()}") from None


def _get_errno(error: Exception) -> int:
    """Return the errno of an error, 0 if it has none; safetensors and tokenizers have it only in the message."""
    if isinstance(error, OSError):
        return error.errno or 0
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match and type(error).__name__ in ("SafetensorError", "Exception") else 0


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """Context for writing the folder `to`: yields a folder beside it, which becomes `to` if the block succeeds.

    If the block fails, nothing is left. Raises InputError if `to` exists and is not an empty folder, before or after
    the block: nothing is replaced.
    """
    to = to.absolute()
    check(not to.exists() or (to.is_dir() and not any(to.iterdir())), f"{to}: exists; give a new folder")
    temporary = to.with_name(f"{to.name}.{uuid.uuid4().hex[:8]}")
    try:
        with report_full_disk(to):
            temporary.mkdir(parents=True)
            yield temporary
            _rename(temporary, to)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: Path, to: Path) -> None:
    try:
        os.replace(temporary, to)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{to}: {(error.strerror or 'exists').lower()}; give a new folder") from None
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        raise InputError(f"{to}: exists; give a new folder") from None


def reserve_space(path: Path) -> None:
    """Reserve disk space for all of a sparse file: on a full disk, writing to its memory map would kill the process."""
    with report_full_disk(path), open(path, "r+b") as file:
        size = path.stat().st_size
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in NOT_SUPPORTED:
                    raise
            else:
                return
        _fill_holes(file.fileno(), size)


def _fill_holes(descriptor: int, size: int) -> None:
    """Rewrite a file in place, so that it has no holes: for macOS, which has no posix_fallocate."""
    for start in range(0, size, CHUNK):
        chunk = os.pread(descriptor, min(CHUNK, size - start), start)
        while chunk:
            written = os.pwrite(descriptor, chunk, start)
            chunk, start = chunk[written:], start + written  # noqa: PLW2901  (a write may be partial)
