"""What the numbers were measured on: device, driver, versions, commit; and what the chip could do at most."""

import json
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure.gpu.bench import seconds_of
from fedadamw.runner.manifest import commit, device_name

PACKAGES = ("torch", "transformers", "peft", "safetensors", "numpy", "triton", "bitsandbytes", "pydantic")
PACKED = Path(__file__).parent / "packed.json"  # what pack.py knew of the checkout
PEAKS = {  # TFLOP/s by part of the device's name, from its data sheet: dense bf16, and float32 without tensor cores
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.0, 67.0),
    "GH200": (989.0, 67.0),
    "B200": (2250.0, 75.0),
    "A100": (312.0, 19.5),
    "A10": (125.0, 31.2),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "RTX 4090": (165.2, 82.6),
}


def device_of(kind: str) -> torch.device:
    """The device of this kind, with its number: torch's settings of a device want one."""
    return torch.device("cuda", 0) if kind == "cuda" else torch.device(kind)


def facts_of(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions and commit."""
    packed = json.loads(PACKED.read_text()) if PACKED.is_file() else {}
    return {
        "commit": packed.get("commit") or commit(),
        "device": device_name(device),
        "driver": driver(device),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "versions": {name: version_of(name) for name in PACKAGES},
        "memory_gb": memory_gb(device),
        "packed": packed or None,
    }


def version_of(package: str) -> str | None:
    """The installed version of a package, None without it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def driver(device: torch.device) -> str | None:
    """The driver's version, as nvidia-smi says it."""
    if device.type != "cuda":
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def memory_gb(device: torch.device) -> float | None:
    """The device's memory."""
    if device.type != "cuda":
        return None
    return round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1)


def listed_peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """The chip's peak in TFLOP/s from the table; None if it is not there."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    found = next((peaks for part, peaks in PEAKS.items() if part in name), None)
    return None if found is None else found[0 if dtype == torch.bfloat16 else 1]


def measured_peak(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """TFLOP/s of a product of two square matrices of random numbers: the fastest of five."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    times = [seconds_of(lambda: a @ b, device) for _ in range(7)]
    return 2 * size**3 / min(times[2:]) / 1e12
