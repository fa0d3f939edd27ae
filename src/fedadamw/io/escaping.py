"""Escape text from data, models and settings for terminals, HTML pages and model cards."""

import html
import json
import re
import unicodedata
from typing import Any

from fedadamw.io.json_values import replace_nan

BIDI_CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they change the direction of text
MARKDOWN_SPECIAL = re.compile(r"[\\`*\[\]<>|&~$#]|(?<!\w)_|_(?!\w)")  # an underscore inside a word is literal


def escape_text(text: object) -> str:
    r"""Return `text` on one line, with control characters escaped: \x1b."""
    return "".join(_escape(c) if _is_control(c) else c for c in str(text))


def escape_html(text: object) -> str:
    """Escape `text` for HTML."""
    return html.escape(escape_text(text))


def unescape_html(text: str) -> str:
    """Return what `escape_html` was given, on one line and with control characters escaped."""
    return html.unescape(text)


def escape_markdown(text: object) -> str:
    """Escape `text` for Markdown, in a sentence or a table cell."""
    return MARKDOWN_SPECIAL.sub(r"\\\g<0>", escape_text(text))


def escape_script(value: Any) -> str:
    """Return `value` as JSON for an HTML script: no text in it can end the script or begin a comment; NaN is null."""
    text = json.dumps(replace_nan(value), allow_nan=False)  # escapes all beyond ASCII, U+2028 too
    return re.sub("[<>&]", lambda match: _escape(match.group()), text)


def _is_control(c: str) -> bool:
    noncharacter = ord(c) & 0xFFFE == 0xFFFE  # the last two code points of each Unicode plane
    return noncharacter or c in BIDI_CONTROLS or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")


def _escape(c: str) -> str:
    return f"\\u{ord(c):04x}" if c.isprintable() else ascii(c)[1:-1]
