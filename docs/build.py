"""Builds the site of this version into build/docs/<version>, beside those of other versions.

python docs/build.py [FOLDER]
"""

import json
import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent
RELEASE = re.search(r'^version = "(.+)"', (DOCS.parent / "pyproject.toml").read_text(), re.MULTILINE)
VERSION = ".".join(RELEASE[1].split(".")[:2])  # 0.2 for 0.2.0
INDEX = """<!doctype html>
<meta charset="utf-8"><title>fedadamw</title>
<meta http-equiv="refresh" content="0; url={newest}/index.html">
<p><a href="{newest}/index.html">fedadamw {newest}</a></p>
"""


def list_versions(folder: Path) -> None:
    """Write versions.js for the switcher, and an index.html that leads to the newest version."""
    names = [path.name for path in folder.iterdir() if path.name.replace(".", "").isdigit()]
    names.sort(key=lambda name: tuple(map(int, name.split("."))), reverse=True)  # 0.10 is newer than 0.9
    (folder / "versions.js").write_text(f"window.siteVersions = {json.dumps(names)};\n")
    (folder / "index.html").write_text(INDEX.format(newest=names[0]))


def main(folder: Path) -> int:
    """Build; any warning, also of a link that leads nowhere, is an error."""
    sphinx = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-d", str(folder / ".doctrees")]
    done = subprocess.run([*sphinx, str(DOCS), str(folder / VERSION)], check=False)
    if done.returncode == 0:
        list_versions(folder)
        print(f"the site is in {folder / VERSION}; open {folder / 'index.html'}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if sys.argv[1:] else DOCS.parent / "build" / "docs"))
