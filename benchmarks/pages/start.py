"""The section of docs/performance.md on how fast commands start."""

# ruff: noqa: E501  (tables)

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


def section(record: Mapping[str, Any] | None, table: Callable[[Sequence[str], Iterable[Sequence[str]]], str]) -> str:
    """Return the section; "" without a record of benchmarks/measure/start.py."""
    if record is None:
        return ""
    rows = [
        (
            f"`{name}`" if row["first_round_s"] is None else name,
            "" if row["first_round_s"] is None else f"{row['first_round_s']:.1f}",
            f"{row['wall_s']:.2f}",
            f"{row['cpu_s']:.2f}",
        )
        for name, row in record["commands"].items()
    ]
    return f"""## From the command to the prompt

`benchmarks/measure/start.py` ({record["device"]}, commit {str(record["commit"])[:9]}, {record["cores"]} cores): the median of {record["repeats"]}, in turns; CPU
seconds are of all processes.

{table(("", "s to the first round", "s to the prompt", "CPU s"), rows)}
Nearly all the time before a first round is spent on importing torch and transformers. It is spent once: the ranks are forks of
the command, which is one of them.
"""
