"""Where benchmarks leave what they measured: benchmarks/results/<what>_<device>_<yyyymm>.json."""

import json
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "results"


def write(what: str, device: str, record: dict[str, Any]) -> Path:
    """Leave `record` as this month's of `what` on this kind of device (cpu, cuda)."""
    path = RESULTS / f"{what}_{device}_{time.strftime('%Y%m')}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {path}")
    return path


def newest(what: str, device: str) -> dict[str, Any] | None:
    """The latest record of `what` on this kind of device; None where there is none."""
    found = sorted(RESULTS.glob(f"{what}_{device}_[0-9]*.json"))
    return json.loads(found[-1].read_text()) if found else None
