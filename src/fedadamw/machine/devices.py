"""Cores, memory and GPUs."""

import os
import platform
import shutil
from pathlib import Path
from typing import NamedTuple

from fedadamw.data.row_parts import count_cores
from fedadamw.machine.memory import total_bytes

GB = 1e9
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # in /proc/cpuinfo: Intel and AMD, Intel's AMX, ARM


class Cpu(NamedTuple):
    """The processor and its memory."""

    name: str
    cores: int  # that this process may use
    all_cores: int
    memory_gb: float | None  # that this process may use; None if the system does not say
    bfloat16: bool | None  # in hardware; None if the system does not say


class Gpu(NamedTuple):
    """One GPU."""

    name: str
    memory_gb: float
    free_gb: float
    bfloat16: bool


def describe_cpu() -> Cpu:
    """Return what the system says about the processor and its memory."""
    info = _read("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    flags = {flag for line in info.splitlines() if line.startswith(("flags", "Features")) for flag in line.split()}
    bfloat16 = bool(flags & BFLOAT16_FLAGS) if flags else None
    cores = os.cpu_count() or 1
    return Cpu((names or [platform.machine()])[0], count_cores(), cores, _memory_gb(), bfloat16)


def list_gpus() -> tuple[list[Gpu], str | None]:
    """Return the GPUs that torch can use, and why there is none, or not another one."""
    import torch

    if not torch.cuda.is_available():
        return [], _explain_no_gpu(torch.version.cuda)
    gpus = []
    for number in range(torch.cuda.device_count()):
        try:
            gpus.append(_describe_gpu(number))
        except RuntimeError as error:  # it is another process's alone, full, or broken
            return gpus, f"cuda:{number} cannot be used: {str(error).splitlines()[0]}"
    return gpus, None


def _describe_gpu(number: int) -> Gpu:
    import torch

    about = torch.cuda.get_device_properties(number)
    free, _ = torch.cuda.mem_get_info(number)
    with torch.cuda.device(number):
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return Gpu(about.name, round(about.total_memory / GB, 1), round(free / GB, 1), bfloat16)


def _explain_no_gpu(built_for: str | None) -> str:
    """Why torch finds no GPU. built_for: the CUDA version that torch is built for, None for a CPU."""
    driver = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()
    if built_for is None:
        here = "; there is an NVIDIA driver: install torch as pytorch.org says for CUDA" if driver else ""
        return f"torch is built for CPUs{here}"
    if not driver:
        return f"torch is built for CUDA {built_for}, but there is no NVIDIA driver"
    return f"torch is built for CUDA {built_for}, but the driver gives it no GPU: {_ask_torch_why()}"


def _ask_torch_why() -> str:
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "is CUDA_VISIBLE_DEVICES empty?"


def _memory_gb() -> float | None:
    """The memory in 1e9 bytes; a container's limit if that is lower."""
    total = total_bytes()
    return None if total is None else round(total / GB, 1)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
