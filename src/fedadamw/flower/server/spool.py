"""Keeps a round's uploads on disk until they are averaged, so that only one at a time is in memory."""

from pathlib import Path

import numpy as np
from flwr.app import Message
from safetensors.torch import load_file, save

from fedadamw.engine.client import Answer, Shard
from fedadamw.flower.server.check_upload import CheckedUpload, JobName, UploadChecker
from fedadamw.flower.server.norm_bounds import Norms, clip
from fedadamw.io.disk import report_full_disk
from fedadamw.vector import Vector


class UploadSpool:
    """Stores the uploads of a round in files in `folder`, which must be empty. like: sets their device.

    Each has a place: its client's number, or in a buffered run its job's.
    """

    def __init__(self, checker: UploadChecker, like: Vector, folder: Path) -> None:
        self.checker, self.folder, self._like = checker, folder, like

    def accept(
        self,
        reply: Message | Exception,
        place: int,
        client: int,
        registered: int | None,
        samples: int | None,
        job: JobName | None = None,
    ) -> CheckedUpload:
        """Check a reply and write its upload to disk; raises RefusedError as UploadChecker.check does."""
        upload, tensors = self.checker.check(reply, client, registered, samples, job)
        with report_full_disk(self._file(place)):
            self._file(place).write_bytes(save(tensors))
        return upload

    def load(self, place: int, upload: CheckedUpload, limits: Norms) -> tuple[Shard, Answer]:
        """Return an upload as the engine's Shard and Answer, clipped to `limits`; delete its file."""
        tensors = {name: t.to(self._like.device) for name, t in load_file(self._file(place)).items()}
        self.drop(place)
        up, payload = self.checker.decode(tensors)
        up = clip(up, upload.norms, limits)
        loss = self._like.new_tensor(upload.loss)
        answer = Answer(up, (), tensors["statistics"], loss, upload.samples, None, payload, steps=upload.steps)
        return Shard(upload.client, np.arange(0), None), answer

    def drop(self, place: int) -> None:
        """Delete an upload."""
        self._file(place).unlink(missing_ok=True)

    def _file(self, place: int) -> Path:
        return self.folder / f"{place}.safetensors"
