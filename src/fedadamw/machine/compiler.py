"""Whether torch.compile works here: something tiny is compiled, in a process of its own."""

import os
import re
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

TIMEOUT_S = 180.0  # on a busy machine; 10 s is normal
QUICK = {  # what torch compiles first, for larger programs than this one: it takes twice as long
    "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
    "TORCHINDUCTOR_VEC_ISA_OK": "0",
}
CODE = """
import sys, torch
x = torch.ones(64, device=sys.argv[1])
assert torch.compile(lambda x: x - 0.1 * x / (x.square().sqrt() + 1e-8))(x).sum() > 0
"""


class Compiler(NamedTuple):
    """torch.compile on one kind of device."""

    device: str
    works: bool
    wall_s: float
    problem: str | None


def try_compiler(device: str) -> Compiler:
    """Compile a few operations for `device` (cpu or cuda), without using what was compiled before."""
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-c", CODE, device],
                env={**os.environ, **QUICK, "TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": folder},
                check=False,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
        problem = _find_reason(done.stderr) if done.returncode else None
    except subprocess.TimeoutExpired:
        problem = f"it takes longer than {TIMEOUT_S:.0f} s"
    except OSError as error:  # no folder for temporary files
        problem = str(error)
    return Compiler(device, problem is None, round(time.perf_counter() - start, 1), problem)


def _find_reason(stderr: str) -> str:
    """The line of a traceback that says most: the C++ compiler's own error, or the last one with an error's name."""
    lines = [line.strip() for line in stderr.splitlines()]
    own = [line for line in lines if "fatal error:" in line]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Failed|Compiler)\b.*:", line)]
    reason = [*own, *reversed(named), *reversed(lines), "no message"][0]
    return re.sub(r"^(torch[\w.]*: )+", "", reason)  # the names of torch's own errors before the first
