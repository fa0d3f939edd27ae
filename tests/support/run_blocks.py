"""Runs the blocks of a page, listed in a JSON file as [language, code, line]: all Python in this process.

python run_blocks.py blocks.json
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import warm_start


def main(blocks: Path) -> None:
    """Run the blocks in order, up to the first that fails."""
    listed = json.loads(blocks.read_text())
    if not any(language == "bash" and "fedadamw " in code for language, code, _ in listed):
        run(listed, dict(os.environ))
        return
    folder = Path(tempfile.mkdtemp())
    server = warm_start.start(folder)  # its forks end here, before what follows
    try:
        run(listed, {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"})
    finally:
        os.kill(server, signal.SIGKILL)
        shutil.rmtree(folder)


def run(listed: list[tuple[str, str, int]], environment: dict[str, str]) -> None:
    """Run blocks; `environment`: of the bash ones."""
    sys.path[0] = str(Path.cwd())  # as in a reader's own session
    session: dict = {"__name__": "__main__"}
    for language, code, line in listed:
        print(f"--- line {line}, {language}\n{code}", flush=True)
        if language == "python":
            exec(compile(code, f"line {line}", "exec"), session)
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", code], env=environment, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
