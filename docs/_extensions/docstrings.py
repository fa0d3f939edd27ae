"""The package's docstrings are plain text with `code` in single backticks: this makes them what Sphinx reads."""

import re

from sphinx.application import Sphinx


def as_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Set code in double backticks, and indented examples as literal blocks."""
    text: list[str] = []
    for line in lines:
        indented = line.startswith("    ")
        if indented and text and not text[-1] and not any(before.startswith("    ") for before in text[-2:]):
            text += ["::", ""]
        if not indented and text and text[-1].startswith("    ") and line:
            text.append("")
        text.append(line if indented else re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line).replace("*", r"\*"))
    lines[:] = text


def setup(app: Sphinx) -> dict[str, bool]:
    """Process every docstring that autodoc reads."""
    app.connect("autodoc-process-docstring", as_text)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
