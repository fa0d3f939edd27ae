"""Out-of-memory errors of any library, and releasing a device's cached memory."""

import gc
import re

import torch

FULL = re.compile(
    r"out of memory|not enough memory|can(no|')t allocate memory|cudaErrorMemoryAllocation"  # CUDA's, and a CPU's
    r"|STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED|DEVICE_ALLOCATION_FAILED"  # cuBLAS, cuSOLVER, cuSPARSE, cuDNN, cuFFT
    r"|(CUBLAS|CUDNN)_STATUS_NOT_INITIALIZED",  # creating a handle needs memory
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory is full: torch's own type, or a library's message."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and FULL.search(str(error)) is not None


def release_memory() -> None:
    """Release cached memory that no tensor uses.

    Do not call inside an except block: the traceback keeps the tensors alive.
    """
    gc.collect()
    torch.cuda.empty_cache()
