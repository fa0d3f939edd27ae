"""Run the parts that wait in a record, one after the other; __main__ starts this in a process of its own.

A process of its own, because an error of the device leaves all of a process without it, and a call that hangs can only
be ended from outside.
"""

import importlib
import sys
import time
import traceback
from pathlib import Path

import torch

from benchmarks.measure.gpu.bench import Bench, DeviceLostError, describe
from benchmarks.measure.gpu.parts import PARTS, limit_of
from benchmarks.measure.gpu.record import FAILED, LEFT_OUT, Record


def main() -> None:
    path, device, until = Path(sys.argv[1]), torch.device(sys.argv[2]), float(sys.argv[3])
    set_up(device)
    while waiting := Record.read(path).waiting():
        run_part(Record.read(path), waiting[0], device, until)


def set_up(device: torch.device) -> None:
    """True float32 everywhere, as a run with precision float32 has it."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.zeros(1, device=device).item()


def run_part(record: Record, name: str, device: torch.device, until: float) -> None:
    """Run one part, and note how it ended."""
    budget, left = record.content["budget_s"], until - time.time()
    limit = limit_of(name, budget, left)
    least = PARTS[name].least * PARTS[name].share * budget
    if limit < least:
        record.end(name, LEFT_OUT, f"{max(left, 0):.0f} s of the budget were left, it needs {least:.0f} s")
        return
    print(f"{name}: {PARTS[name].about}", flush=True)
    record.begin(name)
    bench = Bench(record, name, device, record.content["small"], time.time() + limit)
    try:
        module = importlib.import_module(f"benchmarks.measure.gpu.{PARTS[name].module}")
        module.measure(bench)
    except DeviceLostError as error:
        record.end(name, FAILED, f"the device was lost: {error}")
        raise SystemExit(3) from None  # the rest needs a process with a device
    except Exception as error:  # outside any measurement
        record.parts[name]["traceback"] = traceback.format_exc().splitlines()[-6:]
        record.end(name, FAILED, describe(error))
        return
    record.end(name, *bench.verdict())


if __name__ == "__main__":
    main()
