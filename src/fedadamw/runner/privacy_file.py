"""privacy.json: how many samples each client of a run with differential privacy trains on, which its epsilon needs."""

import json
from pathlib import Path

from fedadamw.checkpoint import CheckpointError, write_atomically
from fedadamw.validation import check

NAME = "privacy.json"


def write_sizes(folder: Path, sizes: list[int] | None) -> None:
    """Write the samples of each client; None: only Flower's nodes know them."""
    write_atomically(folder / NAME, (json.dumps({"samples": sizes}) + "\n").encode())


def read_sizes(folder: Path) -> list[int] | None:
    """Return the samples of each client, None if they are not known; CheckpointError if the file is damaged."""
    try:
        found = json.loads((folder / NAME).read_text())["samples"]
        sizes = None if found is None else [int(n) for n in found]
        check(sizes is None or min(sizes, default=1) > 0, "samples must be above 0")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / NAME}: cannot be read ({error})") from None
    return sizes
