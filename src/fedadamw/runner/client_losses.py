"""clients.jsonl: who was sampled in each round, and each client's training loss. Runs do not depend on it."""

import json
from collections.abc import Mapping
from pathlib import Path

from fedadamw.checkpoint import write_atomically
from fedadamw.io.disk import report_full_disk
from fedadamw.io.json_values import replace_nan
from fedadamw.report.run_files import LossesDict

DIGITS = 6  # of a loss


class ClientLosses:
    """The losses of a run's clients, one line a round."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "clients.jsonl"

    def append(self, round_: int, losses: Mapping[int, float | None]) -> None:
        """Append the losses of round `round_` (from 1), by client; None if its answer was not accepted."""
        line: LossesDict = {
            "round": round_,
            "clients": list(losses),
            "losses": replace_nan(list(losses.values()), DIGITS),
        }
        with report_full_disk(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def keep(self, rounds: int) -> None:
        """Drop what comes after the first `rounds` rounds, from where the run starts or resumes."""
        if self.path.exists():
            lines = [json.dumps(line) + "\n" for line in read_losses(self.path) if line["round"] <= rounds]
            write_atomically(self.path, "".join(lines).encode())


def read_losses(path: Path) -> list[LossesDict]:
    """Return the lines of clients.jsonl; none if it is missing, as of an older run; damaged lines are left out."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [line for line in map(_parse, lines) if line is not None]


def _parse(text: bytes) -> LossesDict | None:
    try:
        line = json.loads(text)
        return {"round": int(line["round"]), "clients": list(line["clients"]), "losses": list(line["losses"])}
    except (ValueError, TypeError, KeyError):
        return None
