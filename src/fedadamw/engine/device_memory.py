"""A device's memory: how an error says that it is full, and how what is free there is given back."""

import gc
import re

import torch

FULL = re.compile(
    r"out of memory|not enough memory|can(no|')t allocate memory|cudaErrorMemoryAllocation"  # CUDA's, and a CPU's
    r"|STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED|DEVICE_ALLOCATION_FAILED"  # of cuBLAS, cuSOLVER, cuSPARSE, cuDNN, cuFFT
    r"|(CUBLAS|CUDNN)_STATUS_NOT_INITIALIZED",  # a handle wants memory of its own
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is full: torch's own for it, or a library's under another name."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and FULL.search(str(error)) is not None


def give_back() -> None:
    """Give what nobody holds any more back to the device.

    Do not call inside an except block: the traceback keeps the tensors alive.
    """
    gc.collect()
    torch.cuda.empty_cache()
