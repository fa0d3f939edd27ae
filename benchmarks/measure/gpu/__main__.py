"""Measure everything that waits for a GPU: one command, below nine minutes, without a network.

First whether all engines, codecs and algorithms give the same numbers on the device, then the local step, the paper's
round, ways to run it, memory, a trace, and 300 rounds on CIFAR-10. What fails is recorded with its reason and the rest
goes on; the JSON is whole after every measurement. README.md says what it needs and how to read the record.

    python -m benchmarks.measure.gpu [--device cpu] [--small] [--only step,round] [--budget SECONDS] [--out FILE]
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from benchmarks.measure.gpu.machine import device_of, facts_of
from benchmarks.measure.gpu.parts import BUDGET_S, GRACE_S, LATE_S, PARTS, START_S, limit_of
from benchmarks.measure.gpu.record import CUT_OFF, DONE, FAILED, RUNNING, Record


class StoppedError(BaseException):
    """A signal asks to stop."""


def main() -> None:
    args = parse_arguments()
    path = args.out.resolve() if args.out else records.path_of("gpu", args.device, record=args.record)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    record = new_record(path, args)
    print(f"record: {path}", flush=True)
    until = time.time() + args.budget
    try:
        while record.waiting():
            record = run_process(path, device_of(args.device), until)
    except StoppedError as error:
        record = Record.read(path)
        record.end_all(CUT_OFF, f"stopped by {error}")
    record.content["status"] = "complete" if all(p["status"] == DONE for p in record.parts.values()) else "incomplete"
    record.content["wall_s"] = round(time.time() - until + args.budget, 1)
    record.save()
    report(record)
    failed = any(part["status"] == FAILED for part in record.parts.values())
    stopped = any(part["status"] == CUT_OFF for part in record.parts.values())
    raise SystemExit(1 if failed or stopped else 0)


def parse_arguments() -> argparse.Namespace:
    """The command line; `--only` becomes a list of parts."""
    parser = new_parser(__doc__, devices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="small shapes: try that everything runs, on a CPU too")
    parser.add_argument("--only", metavar="PART,...", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--budget", type=float, default=BUDGET_S, metavar="SECONDS", help="for all parts (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the record here")
    args = parser.parse_args()
    args.only = args.only.split(",") if args.only else list(PARTS)
    unknown = [name for name in args.only if name not in PARTS]
    if unknown:
        parser.error(f"--only {unknown[0]}: no such part; there are {', '.join(PARTS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no GPU; --device cpu --small tries everything without one")
    return args


def stop(number: int, frame: object) -> None:
    raise StoppedError(signal.Signals(number).name)


def new_record(path: Path, args: argparse.Namespace) -> Record:
    """A record without measurements, saved."""
    content: dict[str, Any] = facts_of(device_of(args.device)) | {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "budget_s": args.budget,
        "small": args.small,
        "status": RUNNING,
        "wall_s": None,
        "parts": {name: {"about": part.about} for name, part in PARTS.items() if name in args.only},
    }
    record = Record(path, content)
    record.save()
    return record


def run_process(path: Path, device: torch.device, until: float) -> Record:
    """Run the waiting parts in a new process, until all have run, it ends, or a part takes too long; the record."""
    before = Record.read(path).waiting()
    command = [sys.executable, "-m", "benchmarks.measure.gpu.worker", str(path), str(device), str(until)]
    process = subprocess.Popen(command, cwd=records.ROOT, start_new_session=True)
    begun = time.time()
    try:
        why = watch(process, path, begun, until)
    finally:
        end_group(process)
    record = Record.read(path)
    running = record.running()
    if running is not None:
        ended = f"its process ended with exit status {process.returncode}"
        record.end(running, CUT_OFF if why else FAILED, why or ended)
    elif record.waiting() == before:
        record.end(before[0], FAILED, why or f"its process ended with exit status {process.returncode} at its start")
    return record


def watch(process: "subprocess.Popen[bytes]", path: Path, begun: float, until: float) -> str:
    """Wait for the process; returns why it must end now, "" if it ended itself."""
    while process.poll() is None:
        time.sleep(0.2)
        record, now = Record.read(path), time.time()
        name = record.running()
        if name is None:
            idle = now - max([begun, *(p.get("ended", 0.0) for p in record.parts.values())])
            if idle > START_S:
                return f"its process began nothing within {START_S:.0f} s"
            continue
        since = record.parts[name]["began"]
        limit = min(limit_of(name, record.content["budget_s"], until - since) + GRACE_S, until - since + LATE_S)
        if now - since > limit:
            return f"it took longer than {limit:.0f} s"
    return ""


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End the process and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def report(record: Record) -> None:
    """Print a line for each part."""
    for name, part in record.parts.items():
        print(f"{name:12} {part['status']:9} {part['seconds']:6.1f} s  {part.get('why', '')}")
    print(f"{record.content['status']}, {record.content['wall_s']} s: {record.path}")


if __name__ == "__main__":
    main()
