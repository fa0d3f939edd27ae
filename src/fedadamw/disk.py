"""A disk that is full: said in one line that names the file, and met before a mapping of a file is written to."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, a user's share of it used up, a limit of a file's size
NO_WAY = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)  # of some file systems to set space aside
BLOCK = 2**20


class DiskFullError(OSError):
    """A file was not written, since there is no space for it."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that writes the file `path`; DiskFullError where there is no space for it."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFullError(f"{path}: not written, {os.strerror(error.errno).lower()}") from None


def take_space(path: Path) -> None:
    """Have the disk set aside what a sparse file will hold: else a full one kills who writes to its mapping."""
    with writing(path), open(path, "r+b") as file:
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
