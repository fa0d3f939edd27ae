"""The same job in other frameworks: seconds a round, seconds before the first, peak memory.

benchmarks/measure/peer_jobs/job.py is the job; each file beside it does it in one framework, with the same clients and
batches, and prints its losses, which must agree before any number is believed. Each framework has an environment of
its own.

    python -m benchmarks.measure.peers --install     # makes the environments, once
    python -m benchmarks.measure.peers               # writes benchmarks/results/peers_cpu_<yyyymm>.json
    python -m benchmarks.measure.peers --only plain,fedadamw --models cnn --rounds 5
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.common import records
from fedadamw.runner.manifest import commit, device_name

HERE = Path(__file__).parent / "peer_jobs"
ENVIRONMENTS = HERE / "environments"
CORES = len(os.sched_getaffinity(0))
MODELS = "cnn,vit"
MARK = "FEDADAMW_PEER"  # in the environment of all processes of one run


class Way(NamedTuple):
    """One way to do the job."""

    script: str
    threads: int = 1
    environment: str | None = None  # None: this one
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="make the frameworks' environments")
    parser.add_argument("--only", help="ways that begin with one of these words, as plain,pfl")
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.install:
        install()
        return
    begins = tuple((given.only or "").split(","))
    ways = {name: way for name, way in WAYS.items() if name.startswith(begins)}
    jobs = {}
    for model in given.models.split(","):
        found = {name: run(way, model, given.rounds) for name, way in ways.items()}
        check_losses(found)
        show(model, found)
        jobs[model] = found
    if given.only or given.models != MODELS:
        print("not written: a record has all ways and models")
        return
    record = {
        "commit": commit(),
        "device": device_name(torch.device("cpu")),
        "cores": CORES,
        "torch": torch.__version__,
        "rounds": given.rounds,
        "jobs": jobs,
    }
    records.write("peers", "cpu", record)


def install() -> None:
    """A virtual environment for each framework, from its requirements file."""
    for requirements in sorted(HERE.glob("*.txt")):
        place = ENVIRONMENTS / requirements.stem
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([str(place / "bin" / "pip"), "install", "-q", "-r", str(requirements)], check=True)


def run(way: Way, model: str, rounds: int) -> dict[str, Any]:
    """What one way came to, from the line of JSON that it prints at its end."""
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
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(arguments, stdout=said, stderr=log, env=environment)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, memory_mb(f"{MARK}={arguments[-1]}"))
            time.sleep(0.5)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{way.script}: {log.read()[-2000:]}")
        said.seek(0)
        return {**json.loads(said.read().splitlines()[-1]), "peak_mb": round(peak)}


def memory_mb(mark: str) -> float:
    """The memory of all processes with `mark` in their environment, what they share counted once, in MB."""
    total = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found = re.search(r"Pss:\s+(\d+) kB", (process / "smaps_rollup").read_text())
                total += int(found.group(1)) if found else 0
        except OSError:  # it has ended, or is not ours
            continue
    return total / 1e3


def check_losses(found: dict[str, dict[str, Any]]) -> None:
    """All did the same work: their losses agree, those in bfloat16 to its precision."""
    (first, reference), *others = found.items()
    for name, result in others:
        tolerance = 0.05 if "bf16" in name else 2e-3
        for ours, theirs in zip(result["losses"], reference["losses"], strict=True):
            if not math.isclose(ours, theirs, rel_tol=tolerance):
                raise SystemExit(f"{name} has losses {result['losses']}, {first} {reference['losses']}")


def show(model: str, found: dict[str, dict[str, Any]]) -> None:
    """One table."""
    print(f"\n{model:28} {'s a round':>10} {'start, s':>10} {'peak, MB':>9}")
    for name, result in found.items():
        print(f"{name:28} {result['round_s']:10.2f} {result['start_s']:10.1f} {result['peak_mb']:9,}", flush=True)


if __name__ == "__main__":
    main()
