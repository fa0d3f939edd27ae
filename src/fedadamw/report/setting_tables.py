"""Tables of settings on a page: those that are set, and below them, folded, those that are not."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fedadamw.io.escaping import escape_html
from fedadamw.settings.data import PYTHON
from fedadamw.settings.section import flatten_settings

KINDS = {  # settings of a partition -> the kinds that use them
    "partition.concentration": ("mix", "dirichlet"),
    "partition.minimum": ("dirichlet",),
    "partition.classes_per_client": ("classes",),
    "partition.column": ("column",),
}
OF_RECIPES = ("data.", "model.", "partition.", "lora", "federation.")  # sections that choose model and data by name
OF_SERVER = (  # of a server's own data
    "data.source",
    "data.config",
    "data.test_source",
    "data.test_split",
    "data.max_train",
    "data.max_test",
    "data.validation",
)
OF_PYTHON = ("data.task", "data.resident", "model.blocks", "partition.kind", "partition.clients")


def select_used(settings: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Yield nested settings as (path, value), without those that this run's partition, model and data do not use."""
    kind, is_python = settings["partition"]["kind"], settings["data"]["task"] == PYTHON
    for path, value in flatten_settings(settings):
        unused_by_kind = path in KINDS and kind not in KINDS[path]
        unused_by_python = is_python and path.startswith(OF_RECIPES) and path not in OF_PYTHON
        unused_by_server = path in OF_SERVER and has_no_data(settings)
        if not (unused_by_kind or unused_by_python or unused_by_server):
            yield path, value


def has_no_data(settings: Mapping[str, Any]) -> bool:
    """Whether these nested settings are of a federation whose server has no data; older ones have no such setting."""
    return settings["data"].get("classes") is not None


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
