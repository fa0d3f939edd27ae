"""The records of benchmarks: one JSON file per benchmark, kind of device and month.

A plain run writes a scratch file to runs/benchmarks. With `--record` it writes the committed one, which docs/ is
generated from, to benchmarks/results.
"""

import json
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedadamw.checkpoint import write_atomically
from fedadamw.runner.manifest import commit, device_name

ROOT = Path(__file__).parent.parent.parent
COMMITTED = ROOT / "benchmarks" / "results"
SCRATCH = ROOT / "runs" / "benchmarks"


def path_of(what: str, device: str, *, record: bool) -> Path:
    """This month's file of `what` on this kind of device (cpu, cuda): committed if `record`, else a scratch file."""
    folder = COMMITTED if record else SCRATCH
    return folder / f"{what}_{device}_{time.strftime('%Y%m')}.json"


def write(what: str, device: str, content: dict[str, Any], *, record: bool) -> Path:
    """Write `content` to `path_of` and print where it is."""
    path = path_of(what, device, record=record)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())
    print(f"written: {path}")
    return path


def read_newest(what: str, device: str) -> dict[str, Any] | None:
    """The latest committed record of `what` on this kind of device; None if there is none."""
    paths = sorted(COMMITTED.glob(f"{what}_{device}_[0-9]*.json"))
    return json.loads(paths[-1].read_text()) if paths else None


def provenance(packages: Sequence[str] = ()) -> dict[str, Any]:
    """What a record on a CPU says of its origin: commit, device and versions, those of `packages` too."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("torch", *packages)}}
    return {"commit": commit(), "device": device_name(torch.device("cpu")), "versions": versions}
