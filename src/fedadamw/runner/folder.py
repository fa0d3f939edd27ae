"""The files of a run: writing them, checking them, and resuming from them.

config.yaml      every setting; feeds `fedadamw run` again
manifest.json    versions, commit, seed, fingerprints of data, partition and model, device
metrics.jsonl    one record a round
clients.jsonl    who was sampled in a round, and the losses, see client_losses
client_scores.jsonl  the score of each evaluated client, see client_scores
jobs.jsonl       each client's job, with a virtual clock, see jobs_file
ended.txt        why a run ended early and is finished all the same, if it did
checkpoint/      state.safetensors, replaced atomically
curves.png, report.html
"""

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from fedadamw import checkpoint
from fedadamw.checkpoint import CheckpointError, write_atomically
from fedadamw.data.image_decoding import OWN_SIZE
from fedadamw.engine.record import Record
from fedadamw.io.disk import report_full_disk
from fedadamw.io.json_values import replace_nan
from fedadamw.report.run_files import Manifest, RecordDict
from fedadamw.runner.digest import settings_digest
from fedadamw.runner.rounds import check_new_rounds, with_rounds
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load
from fedadamw.validation import InputError

ADVICE = "start in another folder"
STUDY_FILES = ("results.json", "optuna.log", "table.md")  # files of a comparison, a tuning or an ablation
ENDED = "ended.txt"
REPORT_FILES = ("curves.png", "report.html")
# of a record's fields, if null
LEFT_OUT = ("epsilon", "diagnostics", "federation", "clip", "waited_s", "tuned", "virtual_s", "devices")


class FolderInUseError(InputError):
    """Another process is running in the folder."""


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.manifest = path / "manifest.json"
        self.metrics = path / "metrics.jsonl"
        self.state = path / "checkpoint" / "state.safetensors"

    @property
    def ended(self) -> str:
        """Why the run ended before its last round and is finished all the same; "" if it did not."""
        path = self.path / ENDED
        return path.read_text().strip() if path.is_file() else ""

    def note_end(self, why: str) -> None:
        """Note why the run ended before its last round, or with "" that it did not, or goes on."""
        if why:
            write_atomically(self.path / ENDED, f"{why}\n".encode())
        else:
            (self.path / ENDED).unlink(missing_ok=True)

    @property
    def started(self) -> bool:
        """Whether a run was started here."""
        return self.config.is_file()

    @property
    def used(self) -> bool:
        """Whether a new run would overwrite results here; a start that was killed half-way left none."""
        results = (self.config, self.state, *(self.path / name for name in (*STUDY_FILES, *REPORT_FILES)))
        return any(path.exists() for path in results) or bool(self._whole_lines())

    @property
    def content(self) -> str:
        """What a used folder holds, as a phrase for messages."""
        return "holds a study" if any((self.path / name).exists() for name in STUDY_FILES) else "holds a run"

    @property
    def contents(self) -> str:
        """The path and the files of a finished run, in one line."""
        there = [name for name in ("client_scores.jsonl", "jobs.jsonl", "events.jsonl") if (self.path / name).exists()]
        files = ", ".join(["report.html, curves.png, metrics.jsonl", *there, "config.yaml, checkpoint/"])
        return f"{self.path}: {files}"

    def start(self, experiment: Experiment, manifest: Manifest) -> None:
        """Write the files of a new run; config.yaml last, since it marks the run as started."""
        self.state.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.manifest, (json.dumps(manifest, indent=2) + "\n").encode())
        write_atomically(self.metrics, b"")
        write_atomically(self.config, experiment.to_yaml().encode())

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder against other processes; the lock ends with the block or the process."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file, not a folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot create a folder there ({error.strerror})") from None
        folder = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FolderInUseError(f"{self.path}: another process is running in this folder") from None
            yield
        finally:
            os.close(folder)

    def check_startable(self, experiment: Experiment, *, resume: bool) -> None:
        """Raise InputError if `experiment` can neither start here nor, with `resume`, resume the run here.

        Reliable only while the folder is locked: otherwise another process may start and end a run here.
        """
        if resume and self.started:
            self.check_settings(experiment)
        elif self.used:
            raise InputError(f"{self.path} {self.content} already; resume it, or choose another folder")

    def check_settings(self, experiment: Experiment) -> None:
        """Raise InputError if the run here was started with other settings than `experiment`.

        It may have another number of rounds, if the run can go on to that.
        """
        begun = load(str(self.config))
        if settings_digest(begun) == settings_digest(experiment):
            return
        if settings_digest(with_rounds(experiment, begun.training.rounds)) != settings_digest(begun):
            raise InputError(f"{self.path}: was run with other settings; --resume takes them from {self.config}")
        in_study = self.path.name.endswith(settings_digest(begun)[:10])  # as study.plan names them
        check_new_rounds(self.path, begun, experiment.training.rounds, len(self.records()), in_study=in_study)

    def adopt_changes(self, experiment: Experiment) -> None:
        """Make rounds, keep_best and privacy.budget of `experiment`, which check_settings allows, the run's.

        A later resume takes them from config.yaml. The checkpoint is written first, for both numbers of rounds: a
        process that dies here leaves a run that can be resumed.
        """
        begun = load(str(self.config))
        rounds = experiment.training.rounds
        adopted = with_rounds(begun, rounds).model_copy(
            update={"keep_best": experiment.keep_best, "privacy": experiment.privacy}
        )
        if adopted == begun:
            return
        if self.state.exists() and rounds != begun.training.rounds:
            tensors, facts = self._read_checkpoint(begun)
            digests = {"settings": settings_digest(experiment), "before": settings_digest(begun)}
            checkpoint.write(self.state, "checkpoint", tensors, {**facts, **digests})
        write_atomically(self.config, adopted.to_yaml().encode())

    def check_same(self, manifest: Manifest) -> None:
        """Raise CheckpointError if data, partition or model differ from those that the run started with."""
        before = self.read_manifest()
        check_pixels(self.path, before.get("data") or {}, manifest["data"])
        for key in ("data", "partition", "model", "devices"):
            was, now = _identity(before.get(key)), _identity(manifest.get(key))
            if was != now:
                raise CheckpointError(
                    f"{self.path}: the {key} changed since the run started "
                    f"(was {was}, is {now}); resume with the same, or start in another folder"
                )

    def read_manifest(self) -> Manifest:
        """Return the content of manifest.json."""
        try:
            return cast(Manifest, dict(json.loads(self.manifest.read_text())))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{self.manifest}: cannot be read ({error})") from None

    def records(self) -> list[RecordDict]:
        """Return the records so far, checked to be of rounds 1, 2, ...; an incomplete last line is ignored."""
        records: list[RecordDict] = []
        for number, line in enumerate(self._whole_lines(), start=1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or record.get("round") != number:
                raise CheckpointError(f"{self.metrics}: line {number} is not the record of round {number}")
            records.append(cast(RecordDict, record))
        return records

    def append(self, record: Record) -> None:
        """Append one record; it is on disk when this returns."""
        columns = {
            k: replace_nan(v)
            for k, v in asdict(record).items()
            if v is not None or not (k in LEFT_OUT or k.startswith("clients_"))
        }
        line = json.dumps(columns, allow_nan=False) + "\n"
        with report_full_disk(self.metrics), open(self.metrics, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def save(self, round_: int, tensors: Mapping[str, Tensor], experiment: Experiment) -> None:
        """Replace the checkpoint by one of round `round_`."""
        facts = {"round": round_, "settings": settings_digest(experiment)}
        checkpoint.write(self.state, "checkpoint", tensors, facts)

    def load(self, experiment: Experiment) -> tuple[int, dict[str, Tensor]] | None:
        """Return the checkpoint's round and tensors, None if there is none yet; drop the records of later rounds."""
        recorded = len(self.records())
        if not self.state.exists():
            if recorded > experiment.checkpoint_every:
                raise CheckpointError(f"{self.state}: is missing, though {self.metrics} has {recorded} records")
            self._truncate_records(0)
            return None
        tensors, facts = self._read_checkpoint(experiment)
        round_ = facts.get("round")
        if not isinstance(round_, int) or not 0 <= round_ <= recorded:
            raise CheckpointError(f"{self.metrics}: has {recorded} records, the checkpoint is of round {round_}")
        self._truncate_records(round_)
        return round_, tensors

    def _read_checkpoint(self, experiment: Experiment) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the checkpoint's tensors and facts; raises CheckpointError if it is of another experiment."""
        tensors, facts = checkpoint.read(self.state, "checkpoint")
        if settings_digest(experiment) not in (facts.get("settings"), facts.get("before")):
            raise CheckpointError(f"{self.state}: belongs to a run with other settings than {self.config}")
        return tensors, facts

    def _whole_lines(self) -> list[bytes]:
        content = self.metrics.read_bytes() if self.metrics.exists() else b""
        return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)

    def _truncate_records(self, count: int) -> None:
        write_atomically(self.metrics, b"".join(self._whole_lines()[:count]))


def check_pixels(path: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise CheckpointError if images are prepared in another way than when the run started (its facts: `before`)."""
    if "shape" not in before or "shape" not in after:
        return  # no images
    fits = before.get("fit", OWN_SIZE), after["fit"]
    steps = before.get("steps", after["steps"] if "fit" in before else {}), after["steps"]
    if fits[0] == fits[1] and before["shape"] != after["shape"]:
        return  # other data, which check_same reports by their fingerprints
    for what, (was, now) in (("form that images are stored in", fits), ("way that images are prepared", steps)):
        if was != now:
            raise CheckpointError(f"{path}: the {what} changed since the run started (was {was}, is {now}): {ADVICE}")
    for name in ("mean", "std"):
        was, now = before.get(name), after.get(name)
        if was and now and not all(map(_is_close, was, now)):
            what = f"{name} that pixels are normalised by"
            raise CheckpointError(f"{path}: the {what} changed since the run started (was {was}, is {now}): {ADVICE}")


def _identity(part: object) -> object:
    """Return what must not change of a manifest's part: of the data, only the splits."""
    splits = ("train", "test")
    return {name: part.get(name) for name in splits} if isinstance(part, dict) and splits[0] in part else part


def _is_close(was: float, now: float) -> bool:
    return math.isclose(was, now, rel_tol=1e-5, abs_tol=1e-6)
