"""Tables of settings on a page: those that are set, and below them, folded, those that are not."""

from collections.abc import Iterable

from fedadamw.io.escaping import escape_html


def render_settings(settings: Iterable[tuple[str, object]]) -> str:
    """Return settings, given as (path, value), as HTML: a table, and a folded one of those without a value."""
    settings = list(settings)
    given = [(path, str(value)) for path, value in settings if not _is_empty(value)]
    empty = [(path, "not set") for path, value in settings if _is_empty(value)]
    folded = ""
    if empty:
        folded = f"<details><summary>{len(empty)} not set</summary>{render_table(empty)}</details>\n"
    return render_table(given) + folded


def render_table(rows: Iterable[tuple[str, str]]) -> str:
    """Return a table of two columns, the first of headings."""
    cells = "".join(f"<tr><th>{escape_html(name)}<td>{escape_html(text)}\n" for name, text in rows)
    return f"<table class=settings>\n{cells}</table>\n"


def _is_empty(value: object) -> bool:
    return value is None or value in ([], "", {})
