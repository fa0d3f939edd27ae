"""What clients are called: natural clients by what the data call them, nodes of a federation by their ids."""

import json
from collections.abc import Sequence
from pathlib import Path


def name_clients(folder: Path, natural: Sequence[str] | None = None) -> dict[int, str]:
    """Return the names of a run's clients by number: `client 3, writer-17`, or `client 3, node 8123` of a federation.

    natural: the names of the natural clients, if the run has such. {} without either.
    """
    names = {client: f"client {client}, {name}" for client, name in enumerate(natural or ())}
    path = folder / "events.jsonl"
    for line in path.read_bytes().splitlines() if path.exists() else ():
        if b'"joined"' not in line:
            continue
        try:
            event = json.loads(line)
            if event["event"] == "joined":
                names[int(event["client"])] = f"client {int(event['client'])}, node {event['node']}"
        except (ValueError, TypeError, KeyError):
            continue
    return names
