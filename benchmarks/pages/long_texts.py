"""The section of docs/performance.md on the memory of language models."""

# ruff: noqa: E501  (tables)

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


def section(record: Mapping[str, Any] | None, table: Callable[[Sequence[str], Iterable[Sequence[str]]], str]) -> str:
    """Return the section; "" without a record of benchmarks/measure/long_texts.py."""
    if record is None:
        return ""
    ways = record["ways"]
    base = next((row["ms"] for row in ways.values() if "ms" in row), 0)
    rows = [
        (name, row["failed"], "-", "-")
        if "failed" in row
        else (name, f"{row['ms']:,.0f}", f"{row['ms'] / base:.2f}", f"{row['peak_mb']:,.0f}")
        for name, row in ways.items()
    ]
    shape, (tokens, learned) = record["shape"], record["tokens"]
    return f"""## Long texts and large vocabularies

`benchmarks/measure/long_texts.py` ({record["device"]}, commit {str(record["commit"])[:9]}): the gradient of {record["texts"]} texts at once, {tokens:,} tokens
of which {learned:,} are learned, in {shape["num_hidden_layers"]} layers of SmolLM2-135M's shape with adapters; the fastest of {record["repeats"]}, in turns. The logits
of the padded batch take {record["logits_mb"]:,.0f} MB. Each row adds to the one above; all have the same losses.

{table(("", "ms", "of the first", "peak, MB"), rows)}
Only learned tokens have logits if these come in chunks. The peak is of tensors, without the model's own.
"""
