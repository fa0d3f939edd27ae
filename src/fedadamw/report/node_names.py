"""The nodes of a federation by client, from its events: a name for tables and for hovering over a chart."""

import json
from pathlib import Path


def read_names(folder: Path) -> dict[int, str]:
    """Return the names of the clients that joined a federation, `client 3, node 8123`; {} of a simulated run."""
    path, names = folder / "events.jsonl", dict[int, str]()
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
