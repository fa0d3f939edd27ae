"""Tune the C library's allocator for training on a CPU."""

import ctypes
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
MAX_MMAP_THRESHOLD = 32 * 2**20  # allowed by glibc


def keep_freed_memory() -> None:
    """Keep freed memory in this process for later tensors; do nothing if the C library is not glibc.

    Otherwise each local step returns its activations to the system, and the next maps and zeroes them again.
    """
    mallopt = _find("mallopt")
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, MAX_MMAP_THRESHOLD)
        mallopt(TRIM_THRESHOLD, 2**30)


def return_freed_memory() -> None:
    """Give memory that is free now back to the system: what loading took besides the model."""
    trim = _find("malloc_trim")
    if trim is not None:
        trim(0)


def _find(name: str) -> Any:
    """Return a function of glibc; None if the C library is another."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
