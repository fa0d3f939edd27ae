"""Keeps a round's uploads on disk until they are averaged, so that only one at a time is in memory."""

from pathlib import Path

import numpy as np
from flwr.app import Message
from safetensors.torch import load_file, save
from torch import Tensor

from fedadamw.engine.client import Answer, Shard
from fedadamw.flower.server.check_upload import CheckedUpload, UploadChecker
from fedadamw.flower.server.norm_bounds import Norms, clip
from fedadamw.io.disk import report_full_disk
from fedadamw.vector import Vector


class UploadSpool:
    """Stores the uploads of a round, one file per client in `folder`, which must be empty. like: sets their device."""

    def __init__(self, checker: UploadChecker, like: Vector, folder: Path) -> None:
        self.checker, self.folder, self._like = checker, folder, like

    def accept(
        self,
        reply: Message | Exception,
        client: int,
        registered: int | None,
        samples: int | None,
        t: Tensor | None = None,
    ) -> CheckedUpload:
        """Check a reply and write its upload to disk; arguments and errors are those of UploadChecker.check."""
        upload, tensors = self.checker.check(reply, client, registered, samples, t)
        with report_full_disk(self._file(client)):
            self._file(client).write_bytes(save(tensors))
        return upload

    def load(self, client: int, upload: CheckedUpload, limits: Norms) -> tuple[Shard, Answer]:
        """Return a client's upload as the engine's Shard and Answer, clipped to `limits`; delete its file."""
        tensors = {name: t.to(self._like.device) for name, t in load_file(self._file(client)).items()}
        self.drop(client)
        up, payload = self.checker.decode(tensors)
        up = clip(up, upload.norms, limits)
        loss = self._like.new_tensor(upload.loss)
        answer = Answer(up, (), tensors["statistics"], loss, upload.samples, None, payload)
        return Shard(client, np.arange(0), None), answer

    def drop(self, client: int) -> None:
        """Delete a client's upload."""
        self._file(client).unlink(missing_ok=True)

    def _file(self, client: int) -> Path:
        return self.folder / f"{client}.safetensors"
