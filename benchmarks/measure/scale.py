"""Measure what ranks send each other and how evenly they share the clients: one job over 1, 2, 4 and 8 ranks.

Bytes and calls are those of torch.distributed, counted in every rank; the numbers do not depend on the machine. All
ranks must end with the same bits, and every number of ranks with one rank's losses, or the benchmark stops. With more
ranks than cores nothing is fast: no time is measured but the checkpoint's and the batches', for docs/scale.md, which
computes 64 GPUs from this record.

    python -m benchmarks.measure.scale [--record]
    python -m benchmarks.measure.scale --ranks 1,2 --jobs fedadamw
"""

import argparse
import json
import math
import os
import statistics
from typing import Any

import torch

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from benchmarks.common.processes import run_again
from benchmarks.measure.scale_parts import costs, shares
from benchmarks.measure.scale_parts.traffic import JOBS, run_job
from fedadamw.runner.manifest import commit, device_name

RANKS = "1,2,4,8"
TOLERANCE = 1e-4  # of losses: ranks add the same float32 numbers in another order


def main() -> None:
    args = parse()
    if args.one:
        measured = run_job(args.one)
        if int(os.environ.get("RANK", "0")) == 0:
            print(json.dumps(measured))
        return
    torch.set_num_threads(1)
    jobs: dict[str, Any] = {}
    for job in args.jobs.split(","):
        counts = args.ranks.split(",")
        jobs[job] = {n: run_again(__file__, ["--one", job], ranks=int(n), threads=1) for n in counts}
        check(job, jobs[job])
        print_table(job, jobs[job])
    content = {
        "commit": commit(),
        "device": device_name(torch.device("cpu")),
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "jobs": jobs,
        "shares": shares.measure(),
        "costs": costs.measure(),
    }
    records.write("scale", args.device, content, record=args.record)


def parse() -> argparse.Namespace:
    """The options; a record has everything."""
    parser = new_parser(__doc__, devices=("cpu",))
    parser.add_argument("--jobs", default=",".join(JOBS))
    parser.add_argument("--ranks", default=RANKS)
    parser.add_argument("--one", choices=JOBS, metavar="JOB", help="run this in this process, or as one of its ranks")
    args = parser.parse_args()
    if args.record and (args.ranks != RANKS or args.jobs != ",".join(JOBS)):
        parser.error("a record has all jobs and ranks: --record excludes --jobs and --ranks")
    return args


def check(job: str, runs: dict[str, dict[str, Any]]) -> None:
    """Stop if the ranks of a run ended with other bits, or a number of ranks with other losses."""
    first = next(iter(runs.values()))
    for n, run in runs.items():
        if len(set(run["digests"])) > 1:
            raise SystemExit(f"{job}: the {n} ranks ended with different models: {run['digests']}")
        for ours, theirs in zip(run["losses"], first["losses"], strict=True):
            if not math.isclose(ours, theirs, rel_tol=TOLERANCE):
                raise SystemExit(f"{job}: {n} ranks have losses {run['losses']}, not {first['losses']}")


def print_table(job: str, runs: dict[str, dict[str, Any]]) -> None:
    print(f"\n{job:10} {'ranks':>5} {'calls a round':>14} {'bytes a round':>14} {'of d':>6} {'waited':>7}")
    for n, run in runs.items():
        calls, size = (sum(c[what] for c in run["round"].values()) for what in ("calls", "bytes"))
        waited = statistics.median(run["waited_share"])
        print(f"{'':10} {n:>5} {calls:14} {size:14,} {size / 4 / run['d']:6.2f} {waited:7.0%}", flush=True)


if __name__ == "__main__":
    main()
