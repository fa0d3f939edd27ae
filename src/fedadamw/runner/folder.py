"""What a run leaves on disk, and how a run goes on from it.

config.yaml      every setting; feeds `fedadamw run` again
manifest.json    versions, commit, seed, fingerprints of data, partition and model, device
metrics.jsonl    one record a round
checkpoint/      state.safetensors, replaced atomically
curves.png, report.html
"""

import fcntl
import hashlib
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
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load
from fedadamw.validation import InputError

ELSEWHERE = "start in another folder"
OF_STUDY = ("results.json", "optuna.log", "table.md")  # files of a comparison, a tuning or an ablation
DRAWN = ("curves.png", "report.html")
ASIDE = (  # settings that decide no number of a run, but for rounding
    "device",
    "threads",
    "trackers",
    "checkpoint_every",
    "client_memory",
    "stack",
    "compile",
    "federation",
    "data.resident",
    "training.micro_batch",
    "training.channels_last",
    "training.evaluate_batch",
)
LATER = {  # settings that came after the first runs: at these values all is as it was before there were any
    "data.image_size": None,
    "data.image_mode": "auto",
    "data.on_bad": "error",
}


class RunFolder:
    """One run's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.manifest = path / "manifest.json"
        self.metrics = path / "metrics.jsonl"
        self.state = path / "checkpoint" / "state.safetensors"

    @property
    def started(self) -> bool:
        """Whether a run has begun here."""
        return self.config.is_file()

    @property
    def used(self) -> bool:
        """Whether a new run would overwrite what is here; a start that was killed half-way is nothing."""
        kept = (self.config, self.state, *(self.path / name for name in (*OF_STUDY, *DRAWN)))
        return any(path.exists() for path in kept) or bool(self._whole_lines())

    @property
    def content(self) -> str:
        """What a folder that is used holds, in words."""
        return "holds a study" if any((self.path / name).exists() for name in OF_STUDY) else "holds a run"

    @property
    def contents(self) -> str:
        """Where a finished run is and what is there, in a line."""
        events = "events.jsonl, " if (self.path / "events.jsonl").exists() else ""
        return f"{self.path}: report.html, curves.png, metrics.jsonl, {events}config.yaml, checkpoint/"

    def start(self, experiment: Experiment, manifest: Manifest) -> None:
        """Write what is known before the first round; the settings last, since they say that a run began."""
        self.state.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.manifest, (json.dumps(manifest, indent=2) + "\n").encode())
        write_atomically(self.metrics, b"")
        write_atomically(self.config, experiment.to_yaml().encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, so that two processes never run in it at once; the lock goes with the process."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: is a file, not a folder")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: no folder can be made there ({error.strerror})") from None
        folder = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.path}: another process is running in this folder") from None
            yield
        finally:
            os.close(folder)

    def check_startable(self, experiment: Experiment, *, resume: bool) -> None:
        """Raise InputError where `experiment` may neither begin here nor, with `resume`, continue what is here.

        Only what holds the lock can rely on the answer: until then another process may begin and end a run here.
        """
        if resume and self.started:
            self.check_settings(experiment)
        elif self.used:
            raise InputError(f"{self.path} {self.content} already; resume it, or choose another folder")

    def check_settings(self, experiment: Experiment) -> None:
        """Raise InputError where `experiment` would not continue the run that began here."""
        if settings_digest(load(str(self.config))) != settings_digest(experiment):
            raise InputError(f"{self.path}: was run with other settings; --resume takes them from {self.config}")

    def check_same(self, manifest: Manifest) -> None:
        """Raise CheckpointError where data, partition or model are not those that the run began with."""
        before = self.read_manifest()
        check_pixels(self.path, before.get("data") or {}, manifest["data"])
        for key in ("data", "partition", "model"):
            was, now = _identity(before.get(key)), _identity(manifest[key])
            if was != now:
                raise CheckpointError(
                    f"{self.path}: the {key} changed since the run began "
                    f"(was {was}, is {now}); resume with the same, or start in another folder"
                )

    def read_manifest(self) -> Manifest:
        """What `start` wrote of the run besides its settings."""
        try:
            return cast(Manifest, dict(json.loads(self.manifest.read_text())))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{self.manifest}: cannot be read ({error})") from None

    def records(self) -> list[RecordDict]:
        """The records so far, checked to be those of rounds 1, 2, ...; a line cut short by a crash is left out."""
        found: list[RecordDict] = []
        for number, line in enumerate(self._whole_lines(), start=1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or record.get("round") != number:
                raise CheckpointError(f"{self.metrics}: line {number} is not the record of round {number}")
            found.append(cast(RecordDict, record))
        return found

    def append(self, record: Record) -> None:
        """Add one record, on disk when this returns."""
        columns = {
            k: replace_nan(v)
            for k, v in asdict(record).items()
            if v is not None or k not in ("diagnostics", "federation")
        }
        line = json.dumps(columns, allow_nan=False) + "\n"
        with report_full_disk(self.metrics), open(self.metrics, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def save(self, round_: int, tensors: Mapping[str, Tensor], experiment: Experiment) -> None:
        """Replace the checkpoint by that of round `round_`."""
        facts = {"round": round_, "settings": settings_digest(experiment)}
        checkpoint.write(self.state, "checkpoint", tensors, facts)

    def load(self, experiment: Experiment) -> tuple[int, dict[str, Tensor]] | None:
        """Round and tensors of the checkpoint, None before the first; records past it are dropped."""
        recorded = len(self.records())
        if not self.state.exists():
            if recorded > experiment.checkpoint_every:
                raise CheckpointError(f"{self.state}: is missing, though {self.metrics} has {recorded} records")
            self._keep(0)
            return None
        tensors, facts = checkpoint.read(self.state, "checkpoint")
        if facts.get("settings") != settings_digest(experiment):
            raise CheckpointError(f"{self.state}: belongs to a run with other settings than {self.config}")
        round_ = facts.get("round")
        if not isinstance(round_, int) or not 0 <= round_ <= recorded:
            raise CheckpointError(f"{self.metrics}: has {recorded} records, the checkpoint is of round {round_}")
        self._keep(round_)
        return round_, tensors

    def _whole_lines(self) -> list[bytes]:
        content = self.metrics.read_bytes() if self.metrics.exists() else b""
        return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)

    def _keep(self, records: int) -> None:
        write_atomically(self.metrics, b"".join(self._whole_lines()[:records]))


def check_pixels(path: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise CheckpointError if images are prepared in another way than when the run began, with the facts `before`."""
    if "shape" not in before or "shape" not in after:
        return  # no images
    fits = before.get("fit", OWN_SIZE), after["fit"]
    steps = before.get("steps", after["steps"] if "fit" in before else {}), after["steps"]
    if fits[0] == fits[1] and before["shape"] != after["shape"]:
        return  # other data, as their fingerprints say
    for what, (was, now) in (("form that images are stored in", fits), ("way that images are prepared", steps)):
        if was != now:
            raise CheckpointError(f"{path}: the {what} changed since the run began (was {was}, is {now}): {ELSEWHERE}")
    for name in ("mean", "std"):
        was, now = before.get(name), after.get(name)
        if was and now and not all(map(_close, was, now)):
            what = f"{name} that pixels are normalised by"
            raise CheckpointError(f"{path}: the {what} changed since the run began (was {was}, is {now}): {ELSEWHERE}")


def _identity(part: Any) -> Any:
    """What of a manifest's part must not change: of the data its splits, without what is told about them."""
    splits = ("train", "test")
    return {name: part.get(name) for name in splits} if isinstance(part, dict) and splits[0] in part else part


def _close(was: float, now: float) -> bool:
    return math.isclose(was, now, rel_tol=1e-5, abs_tol=1e-6)


def settings_digest(experiment: Experiment) -> str:
    """A digest of the settings that decide a run's numbers."""
    deciding = experiment.model_dump(mode="json")
    for path in ASIDE:
        section, name = _place(deciding, path)
        del section[name]
    for path, usual in LATER.items():
        section, name = _place(deciding, path)
        if section.get(name, usual) == usual:
            section.pop(name, None)
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def _place(settings: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The section that the setting at `path` is in, {} where there is none, and the setting's own name."""
    *sections, name = path.split(".")
    for section in sections:
        settings = settings.get(section) or {}
    return settings, name
