"""Measure a part of a benchmark in a process of its own, for its peak memory, threads or ranks."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.records import ROOT

END_S = 15.0  # until a process that was asked to end is killed


def run_again(
    file: str, arguments: Sequence[str], *, ranks: int = 1, threads: int | None = None, limit_s: float | None = None
) -> dict[str, Any]:
    """Run the benchmark `file` with other arguments, under torchrun if there are several ranks.

    Returns the JSON in the last line that it prints. `threads` are OpenMP's. Raises SystemExit, which says why, if it
    fails or takes longer than `limit_s`.
    """
    module = ".".join(Path(file).resolve().relative_to(ROOT).with_suffix("").parts)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *torchrun, "-m", module, *arguments]
    environment = os.environ if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=ROOT) as process:
        try:
            out, err = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            _end(process)
            raise SystemExit(f"{module} {' '.join(arguments)}: took longer than {limit_s:g} s") from None
    if process.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)}: {err[-2000:]}")
    measurement: dict[str, Any] = json.loads(out.splitlines()[-1])
    return measurement


def _end(process: subprocess.Popen[str]) -> None:
    """End a process that hangs; torchrun, if asked, ends its ranks first."""
    process.terminate()
    try:
        process.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        process.kill()
