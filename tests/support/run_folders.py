"""Compare the folders of runs, and run the command in a process that a test can kill."""

import json
import subprocess
import sys
import time
from pathlib import Path


def read_records(out: Path) -> list[dict]:
    """The metrics without the times, which no two runs share."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("wall_s", "waited_s")} for record in lines]


def assert_same_files(a: Path, b: Path) -> None:
    assert read_records(a) == read_records(b)
    for name in ("config.yaml", "manifest.json", "clients.jsonl", "checkpoint/state.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    if (a / "jobs.jsonl").exists():
        assert (a / "jobs.jsonl").read_bytes() == (b / "jobs.jsonl").read_bytes()
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())


def start_run(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "fedadamw", "run", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_rounds(out: Path, rounds: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        path = out / "metrics.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") >= rounds:
            return
        time.sleep(0.002)


def wait_for_line(process: subprocess.Popen, start: str) -> None:
    """Read what the process says until a line begins with `start`, or until it ends."""
    for line in process.stdout:
        if line.startswith(start):
            return


DIE_AT_A_RENAME = """
import os, signal, sys
out, n, when, *arguments = sys.argv[1:]
rename, seen = os.replace, 0
def dying(source, target):
    global seen
    ours = str(target).startswith(out)
    seen += ours
    if ours and seen == int(n) and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
    if ours and seen == int(n):
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = dying
sys.argv = ["fedadamw", *arguments]
from fedadamw.cli import main
main()
"""
