"""Words from data, models and settings, made safe for where they stand: on a terminal, in a page, in a model card."""

import html
import json
import re
import unicodedata
from math import isfinite
from typing import Any

TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they change the order in which words are read
IN_MARKDOWN = re.compile(r"[\\`*\[\]<>|&~$#]|(?<!\w)_|_(?!\w)")  # an underscore inside a word means nothing


def escape_text(text: object) -> str:
    r"""`text` on one line, with what would steer a terminal or end a file as an escape: \x1b."""
    return "".join(_escape(c) if _steers(c) else c for c in str(text))


def escape_html(text: object) -> str:
    """`text` as a page shows it."""
    return html.escape(escape_text(text))


def escape_markdown(text: object) -> str:
    """`text` as Markdown shows it, in a sentence or in a table's cell."""
    return IN_MARKDOWN.sub(r"\\\g<0>", escape_text(text))


def escape_script(value: Any) -> str:
    """`value` as JSON inside a page's script: no word in it can end the script, or begin a comment."""
    text = json.dumps(_without_nan(value), allow_nan=False)  # all beyond ASCII is escaped, U+2028 too
    return re.sub("[<>&]", lambda found: _escape(found.group()), text)


def _steers(c: str) -> bool:
    nothing = ord(c) & 0xFFFE == 0xFFFE  # Unicode's two last code points of a plane are no characters
    return nothing or c in TURNING or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")


def _escape(c: str) -> str:
    return f"\\u{ord(c):04x}" if c.isprintable() else ascii(c)[1:-1]


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value
