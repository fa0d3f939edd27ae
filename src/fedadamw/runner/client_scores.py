"""client_scores.jsonl: the model's score on each evaluated client's own held-out samples. Runs do not depend on it."""

import json
from pathlib import Path

from fedadamw.checkpoint import write_atomically
from fedadamw.engine.evaluation import ClientScores
from fedadamw.io.disk import report_full_disk
from fedadamw.io.json_values import replace_nan
from fedadamw.report.client_scores import NAME, read_lines
from fedadamw.report.run_files import ScoresDict


class ClientScoresFile:
    """The scores of a run's clients, one line an evaluation."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def append(self, round_: int, scores: ClientScores | None) -> None:
        """Append the scores after round `round_` (from 1), if there are any."""
        if scores is None:
            return
        line: ScoresDict = {"round": round_, "clients": scores.clients, "samples": scores.samples, **scores.columns}
        with report_full_disk(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(replace_nan(line), allow_nan=False) + "\n")

    def keep(self, rounds: int) -> None:
        """Drop what comes after the first `rounds` rounds, from where the run starts or resumes."""
        if self.path.exists():
            lines = [json.dumps(line) + "\n" for line in read_lines(self.path) if line["round"] <= rounds]
            write_atomically(self.path, "".join(lines).encode())
