"""The package's docstrings are plain text: this makes them what Sphinx reads.

`code` gets double backticks; `name: what it is` lines become a list; indented examples become literal blocks.
"""

import re
import textwrap

from sphinx.application import Sphinx

ITEM = re.compile(r"^([a-zA-Z_]\w*(?:, [a-z_]\w*)*): (?=\S)")
SEVERAL = re.compile(r"(?<=\.) (?=[a-z_]\w*(?:, [a-z_]\w*)*: )")  # items in one line


def escape(text: str) -> str:
    """Set code in double backticks; what else would be markup stays text."""
    parts = re.split(r"`([^`]+)`", text)
    plain = [re.sub(r"([*|\\]|_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
    code = [f"``{part}``" for part in parts[1::2]] + [""]
    return "".join(a + b for a, b in zip(plain, code, strict=True))


def as_list(lines: list[str]) -> list[str]:
    """Make a list of lines `name: text. name: text`, each with the lines that continue it."""
    items: list[str] = []
    for line in lines:
        if ITEM.match(line):
            items.append(line)
        else:
            items[-1] += f" {line.strip()}"
    parts = [part for item in items for part in SEVERAL.split(item)]
    return [*(f"* **{part.partition(': ')[0]}**: {escape(part.partition(': ')[2])}" for part in parts), ""]


def as_block(lines: list[str]) -> list[str]:
    """Set one paragraph, list or example."""
    dedented = textwrap.dedent("\n".join(lines)).splitlines()
    if ITEM.match(dedented[0]):
        return as_list(dedented)
    if lines[0].startswith("    "):
        return ["::", "", *lines, ""]
    head = next((i for i, line in enumerate(lines) if line.startswith(" ")), len(lines))
    if head < len(lines) and lines[head - 1].endswith(":"):
        return [*map(escape, lines[:head]), "", *as_block(lines[head:])]
    return [*(escape(line.strip()) for line in lines), ""]


def read_docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Set a docstring, block by block; what is inherited from torch has Sphinx's markup already."""
    if not (getattr(obj, "__module__", None) or name).startswith("fedadamw"):
        return
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")) if block.strip()]
    lines[:] = [line for block in blocks for line in as_block(block)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Process every docstring that autodoc reads."""
    app.connect("autodoc-process-docstring", read_docstring)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
