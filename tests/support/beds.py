"""Federations of real processes: what tests wait for, and what they show if it does not come."""

import contextlib
import json
import time
from pathlib import Path

from fedadamw.validation import InputError


def assert_completed(bed, run, seconds=300):
    try:
        status = bed.wait_for_end(run, seconds)
    except InputError as late:
        status = str(late)
    assert status == "finished:completed", f"{status}\n{collect_logs(bed, run)}"


def collect_logs(bed, run):
    """Return the logs of a failed run, even if the SuperLink no longer answers."""
    found = [f"{name}: {bed.log(name)[-2000:]}" for name in ("link", *(f"node-{node}" for node in bed.nodes))]
    with contextlib.suppress(InputError):
        found += [bed.flwr("supernode", "list", "bed"), bed.run_log(run)[-3000:]]
    return "\n".join(found)


def server_apps(bed):
    """Return the process ids of this test bed's ServerApps."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            command = path.read_bytes().decode()
            if "flwr-serverapp" in command and f":{bed.port}" in command:
                found.append(int(path.parent.name))
    return found


def records(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition, seconds, what):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} did not come within {seconds} s"
        time.sleep(0.2)
