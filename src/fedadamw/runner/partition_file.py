"""partition.json: how many samples of which class the clients of a run have, and natural clients' names.

Of clients beyond the first MAX_CLIENTS only their number of samples and most frequent classes, see report.client_mix.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedadamw.checkpoint import write_atomically
from fedadamw.report.client_mix import Mix, find_mix
from fedadamw.report.run_files import MAX_CLIENTS

NAME = "partition.json"


def write_partition(
    folder: Path, counts: np.ndarray, classes: Sequence[str], names: Sequence[str] | None = None
) -> None:
    """Write the counts (clients, classes) of as many clients as the chart shows, and all natural clients' names.

    Of more clients than that, also the mix of all.
    """
    content = {"classes": list(classes), "counts": counts[:MAX_CLIENTS].tolist()}
    content |= {} if names is None else {"names": list(names)}
    mix = find_mix(counts, classes) if len(counts) > MAX_CLIENTS else None
    if mix is not None:
        columns = ("samples", "held", "top", "top_samples")
        content["mix"] = {name: getattr(mix, name).tolist() for name in columns}
    write_atomically(folder / NAME, (json.dumps(content) + "\n").encode())


def read_partition(folder: Path) -> tuple[np.ndarray, list[str]] | None:
    """Return counts (clients, classes) and the classes' names; None if the file is missing or damaged."""
    try:
        content = json.loads((folder / NAME).read_text())
        classes = [str(name) for name in content["classes"]]
        return np.array(content["counts"], dtype=int).reshape(-1, len(classes)), classes
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read_mix(folder: Path) -> Mix | None:
    """Return the mix of all clients, of the first ones in an older run; None if the file is missing or damaged."""
    found = read_partition(folder)
    if found is None:
        return None
    counts, classes = found
    try:
        columns = json.loads((folder / NAME).read_text())["mix"]
        samples, held = (np.array(columns[name], dtype=int).reshape(-1) for name in ("samples", "held"))
        top, top_samples = (np.array(columns[n], dtype=int).reshape(len(samples), -1) for n in ("top", "top_samples"))
    except (OSError, ValueError, TypeError, KeyError):
        return find_mix(counts, classes)
    whole = len(held) == len(samples) and top.shape == top_samples.shape and top.max(initial=0) < len(classes)
    return Mix(classes, samples, held, top, top_samples) if whole else find_mix(counts, classes)


def read_names(folder: Path) -> list[str] | None:
    """Return the names of a run's natural clients, by number; None if they have none."""
    try:
        return [str(name) for name in json.loads((folder / NAME).read_text())["names"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None
