"""Runs the blocks of a page, listed in a JSON file as [language, code, line]: all Python in this process.

python run_blocks.py blocks.json
"""

import json
import subprocess
import sys
from pathlib import Path


def main(blocks: Path) -> None:
    """Run the blocks in order, up to the first that fails."""
    sys.path[0] = str(Path.cwd())  # as in a reader's own session
    session: dict = {"__name__": "__main__"}
    for language, code, line in json.loads(blocks.read_text()):
        print(f"--- line {line}, {language}\n{code}", flush=True)
        if language == "python":
            exec(compile(code, f"line {line}", "exec"), session)
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
