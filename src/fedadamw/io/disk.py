"""A disk that is full: said in one line that names the file, and met before a mapping of a file is written to."""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedadamw.validation import InputError, check

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, a user's share of it used up, a limit of a file's size
NO_WAY = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # of some file systems to set space aside
BLOCK = 2**20


class DiskFullError(OSError):
    """A file was not written, since there is no space for it."""


@contextmanager
def report_full_disk(path: Path) -> Iterator[None]:
    """A block that writes the file or folder `path`; DiskFullError where there is no space for it."""
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number not in FULL:
            raise
        raise DiskFullError(f"{path}: not written, {os.strerror(number).lower()}") from None


def _number(error: Exception) -> int:
    """The system's number of an error, which safetensors and tokenizers have in their words alone; 0 of any other."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found and type(error).__name__ in ("SafetensorError", "Exception") else 0


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """A folder beside `to` to be written; at the end of the block it is `to`, and whole, or it is gone.

    An empty folder may be there, but nothing that came there in the meantime is replaced.
    """
    to = to.absolute()
    check(not to.exists() or (to.is_dir() and not any(to.iterdir())), f"{to}: exists; give a new folder")
    aside = to.with_name(f"{to.name}.{uuid.uuid4().hex[:8]}")
    try:
        with report_full_disk(to):
            aside.mkdir(parents=True)
            yield aside
            _rename(aside, to)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _rename(aside: Path, to: Path) -> None:
    try:
        os.replace(aside, to)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{to}: {(error.strerror or 'exists').lower()}; give a new folder") from None
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        raise InputError(f"{to}: exists; give a new folder") from None


def reserve_space(path: Path) -> None:
    """Have the disk set aside what a sparse file will hold: else a full one kills who writes to its mapping."""
    with report_full_disk(path), open(path, "r+b") as file:
        size = path.stat().st_size
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in NO_WAY:
                    raise
            else:
                return
        _write_again(file.fileno(), size)


def _write_again(descriptor: int, size: int) -> None:
    """Write what a file holds to where it is, so that none of it is a hole: for macOS, which has no better way."""
    for start in range(0, size, BLOCK):
        held = os.pread(descriptor, min(BLOCK, size - start), start)
        while held:
            written = os.pwrite(descriptor, held, start)
            held, start = held[written:], start + written  # noqa: PLW2901  (a disk may take less at once)
