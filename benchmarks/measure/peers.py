"""Measure the same job in other frameworks: seconds per round, start-up time and peak memory.

benchmarks/measure/peer_jobs/job.py is the job; each file beside it runs it in one framework with the same clients and
batches and prints its losses; losses that disagree stop the benchmark. Each framework has its own virtual environment.

    python -m benchmarks.measure.peers --install     # create the environments, once
    python -m benchmarks.measure.peers [--turns 5] [--record]
    python -m benchmarks.measure.peers --only plain,fedadamw --models cnn --rounds 5
"""

import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from fedadamw.runner.manifest import commit, device_name

HERE = Path(__file__).parent / "peer_jobs"
ENVIRONMENTS = HERE / "environments"
CORES = len(os.sched_getaffinity(0))
MODELS = "cnn,vit"
MARK = "FEDADAMW_PEER"  # environment variable that marks all processes of one run


class Way(NamedTuple):
    """One way to do the job."""

    script: str
    threads: int = 1
    environment: str | None = None  # a folder of ENVIRONMENTS; None: the current one
    settings: tuple[tuple[str, str], ...] = ()


WAYS = {
    "plain, 1 thread": Way("plain"),
    f"plain, {CORES} threads": Way("plain", threads=CORES),
    "pfl": Way("pfl_job", threads=CORES, environment="pfl"),
    "pfl, 1 thread": Way("pfl_job", environment="pfl"),
    "Flower simulation": Way("flower_job", environment="flower", settings=(("PYTHONPATH", str(HERE)),)),
    "fedadamw, 1 rank": Way("ours"),
    f"fedadamw, {CORES} ranks": Way("ours", settings=(("RANKS", str(CORES)),)),
    f"fedadamw, {CORES} ranks, bf16": Way("ours", settings=(("RANKS", str(CORES)), ("PRECISION", "bf16"))),
}


def main() -> None:
    parser = new_parser(__doc__, devices=("cpu",))
    parser.add_argument("--install", action="store_true", help="create the frameworks' environments")
    parser.add_argument("--only", help="run the ways whose names begin with one of these, such as plain,pfl")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=1, help="do each this often, in turns, and show medians")
    args = parser.parse_args()
    if args.install:
        install()
        return
    if args.record and (args.only or args.models != MODELS):
        parser.error("a record has all ways and models: --record excludes --only and --models")
    prefixes = tuple((args.only or "").split(","))
    ways = {name: way for name, way in WAYS.items() if name.startswith(prefixes)}
    jobs = {}
    for model in args.models.split(","):
        turns = [{name: run(way, model, args.rounds) for name, way in ways.items()} for _ in range(args.turns)]
        for turn in turns:
            check_losses(turn)
        jobs[model] = {name: summarize([turn[name] for turn in turns]) for name in ways}
        print_table(model, jobs[model])
    content = {
        "commit": commit(),
        "device": device_name(torch.device("cpu")),
        "cores": CORES,
        "torch": torch.__version__,
        "rounds": args.rounds,
        "turns": args.turns,
        "jobs": jobs,
    }
    records.write("peers", args.device, content, record=args.record)


def install() -> None:
    """Create a virtual environment for each framework from its requirements file."""
    for requirements in sorted(HERE.glob("*.txt")):
        folder = ENVIRONMENTS / requirements.stem
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "pip"), "install", "-q", "-r", str(requirements)], check=True)


def run(way: Way, model: str, rounds: int) -> dict[str, Any]:
    """Run one way; return the JSON of its last line and the peak memory of its processes."""
    python = sys.executable if way.environment is None else str(ENVIRONMENTS / way.environment / "bin" / "python")
    started = repr(time.time())
    environment = {
        **os.environ,
        MARK: started,
        "OMP_NUM_THREADS": str(way.threads),
        "THREADS": str(way.threads),
        **dict(way.settings),
    }
    arguments = [python, str(HERE / f"{way.script}.py"), model, str(rounds), started]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(arguments, stdout=output, stderr=log, env=environment)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, memory_mb(f"{MARK}={arguments[-1]}"))
            time.sleep(0.5)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{way.script}: {log.read()[-2000:]}")
        output.seek(0)
        return {**json.loads(output.read().splitlines()[-1]), "peak_mb": round(peak)}


def summarize(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of a way's turns, and each turn's seconds a round."""
    medians = {key: statistics.median(turn[key] for turn in turns) for key in ("round_s", "start_s", "peak_mb")}
    return {**turns[0], **medians, "round_s_of_turns": [turn["round_s"] for turn in turns]}


def memory_mb(mark: str) -> float:
    """The memory in MB of all processes with `mark` in their environment; shared pages count once."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                match = re.search(r"Pss:\s+(\d+) kB", (process / "smaps_rollup").read_text())
                total += int(match.group(1)) if match else 0
        except OSError:  # the process has ended or belongs to another user
            continue
    return total / 1e3


def check_losses(results: dict[str, dict[str, Any]]) -> None:
    """Stop if the losses do not agree; those in bfloat16 within its precision."""
    (first, reference), *others = results.items()
    for name, result in others:
        tolerance = 0.05 if "bf16" in name else 2e-3
        for ours, theirs in zip(result["losses"], reference["losses"], strict=True):
            if not math.isclose(ours, theirs, rel_tol=tolerance):
                raise SystemExit(f"{name} has losses {result['losses']}, {first} {reference['losses']}")


def print_table(model: str, results: dict[str, dict[str, Any]]) -> None:
    print(f"\n{model:28} {'s a round':>10} {'start, s':>10} {'peak, MB':>9}")
    for name, result in results.items():
        print(f"{name:28} {result['round_s']:10.2f} {result['start_s']:10.1f} {result['peak_mb']:9,.0f}", flush=True)


if __name__ == "__main__":
    main()
