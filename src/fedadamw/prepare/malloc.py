"""Tune the C library's allocator for training on a CPU."""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
MAX_MMAP_THRESHOLD = 32 * 2**20  # allowed by glibc


def keep_freed_memory() -> None:
    """Keep freed memory in this process for later tensors; do nothing if the C library is not glibc.

    Otherwise each local step returns its activations to the system, and the next maps and zeroes them again.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(MMAP_THRESHOLD, MAX_MMAP_THRESHOLD)
    mallopt(TRIM_THRESHOLD, 2**30)
