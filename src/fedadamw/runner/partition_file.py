"""partition.json: how many samples of which class the clients of a run have, and natural clients' names."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedadamw.checkpoint import write_atomically
from fedadamw.report.run_files import MAX_CLIENTS

NAME = "partition.json"


def write_partition(
    folder: Path, counts: np.ndarray, classes: Sequence[str], names: Sequence[str] | None = None
) -> None:
    """Write the counts (clients, classes) of as many clients as the page shows, and all natural clients' names."""
    content = {"classes": list(classes), "counts": counts[:MAX_CLIENTS].tolist()}
    content |= {} if names is None else {"names": list(names)}
    write_atomically(folder / NAME, (json.dumps(content) + "\n").encode())


def read_partition(folder: Path) -> tuple[np.ndarray, list[str]] | None:
    """Return counts (clients, classes) and the classes' names; None if the file is missing or damaged."""
    try:
        content = json.loads((folder / NAME).read_text())
        classes = [str(name) for name in content["classes"]]
        return np.array(content["counts"], dtype=int).reshape(-1, len(classes)), classes
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read_names(folder: Path) -> list[str] | None:
    """Return the names of a run's natural clients, by number; None if they have none."""
    try:
        return [str(name) for name in json.loads((folder / NAME).read_text())["names"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None
