"""What training on a CPU asks of the C library's allocator."""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # that glibc takes


def keep_freed_memory() -> None:
    """Let this process keep the memory that tensors free for the next ones; nothing where the C library is not glibc.

    Else each local step gives its activations back to the system, and the next one has them mapped and zeroed anew.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    mallopt(TRIM_THRESHOLD, 2**30)
