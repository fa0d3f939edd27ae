"""Finished runs of measurements that take many hours, so that several sittings and machines can share one.

Such a measurement leaves a JSON file for each run in a folder of runs/. The runs that have ended are committed, one a
line, in benchmarks/results/finished/WHAT.jsonl; the measurement starts from them.

    python -m benchmarks.common.finished [FOLDER OF ANOTHER CHECKOUT]      # take note of the runs that have ended there
"""

import json
import sys
from pathlib import Path

from benchmarks.common.records import COMMITTED, ROOT
from fedadamw.checkpoint import write_atomically

FOLDERS = {  # what is measured -> where its runs leave their files, in a checkout
    "asynchronous": Path("runs/asynchronous"),
    "instruct": Path("runs/instruct"),
    "private-curves": Path("runs/private-curves"),
    "evidence": Path("runs/evidence/results"),
}


def restore(what: str) -> None:
    """Write the committed results of `what` to the files that its runs would have left, unless they are there."""
    lines = path_of(what).read_text().splitlines() if path_of(what).exists() else []
    for line in lines:
        run = json.loads(line)
        path = ROOT / FOLDERS[what] / run["file"]
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, (json.dumps(run["result"]) + "\n").encode())


def keep(what: str, checkout: Path = ROOT) -> int:
    """Add the runs that have ended in a checkout to the committed file; return how many it has now."""
    lines = path_of(what).read_text().splitlines() if path_of(what).exists() else []
    runs = {run["file"]: run["result"] for run in map(json.loads, lines)}
    runs |= {path.name: json.loads(path.read_text()) for path in (checkout / FOLDERS[what]).glob("*.json")}
    if runs:
        path_of(what).parent.mkdir(parents=True, exist_ok=True)
        content = "".join(json.dumps({"file": name, "result": runs[name]}) + "\n" for name in sorted(runs))
        write_atomically(path_of(what), content.encode())
    return len(runs)


def path_of(what: str) -> Path:
    """Return the committed file of the runs of `what` that have ended."""
    return COMMITTED / "finished" / f"{what}.jsonl"


if __name__ == "__main__":
    for name in FOLDERS:
        print(f"{name}: {keep(name, Path(*sys.argv[1:]) if len(sys.argv) > 1 else ROOT)} runs")
