"""The uploads of a round: each checked as it comes, kept on disk, and given out one at a time."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Message
from safetensors.torch import load_file, save
from torch import Tensor

from fedadamw.engine.client import Answer, Shard
from fedadamw.engine.uploads import Uploads
from fedadamw.flower.protocol import ARRAYS
from fedadamw.flower.server import check_upload as guard
from fedadamw.flower.server.messenger import read_numbers
from fedadamw.flower.wire import HEADER, ArraySpec, RefusedError, read_arrays
from fedadamw.io.disk import report_full_disk
from fedadamw.settings.training import TrainingSettings
from fedadamw.validation import InputError
from fedadamw.vector import Layout, Vector, nbytes

SPARE = 4  # times an honest answer's bytes: what is a little larger is refused with its own reason


class Upload(NamedTuple):
    """An answer that passed the guard; its tensors are on disk."""

    lengths: Mapping[str, float]  # of its vectors
    loss: float
    samples: int
    nbytes: int
    fresh: bool  # it began without its memory, which it had lost


class UploadSpool:
    """Reads answers. up, statistics: of the shapes and types that honest clients send. spool: an empty folder.

    layout: of the statistics.
    """

    def __init__(
        self, training: TrainingSettings, uploads: Uploads, up: Any, statistics: Vector, layout: Layout, spool: Path
    ) -> None:
        self.training, self.uploads, self.spool, self._statistics = training, uploads, spool, layout
        self._up, self._like, self._begun = up, statistics, statistics.cpu()
        sent = uploads.code(up, uploads.no_residual(up.delta), torch.Generator()).payload
        self._expected = {f"up.{name}": ArraySpec.of(t) for name, t in sent.items()}
        self._expected["statistics"] = ArraySpec.of(statistics)
        honest = sum(wanted.nbytes + HEADER for wanted in self._expected.values())
        self.most = SPARE * honest  # bytes of arrays that an answer may have

    def take(self, reply: Message | Exception, client: int, samples: int | None, size: int | None) -> Upload:
        """What is kept of a client's answer; RefusedError where it does not count.

        samples: as it registered. size: how many it has, as far as is known.
        """
        numbers = read_numbers(reply)
        if not isinstance(reply, Message):
            raise RefusedError("garbage", "it is no message")
        loss = guard.check_metrics(numbers, client, samples)
        records = reply.content.array_records
        if set(records) != {ARRAYS}:
            raise RefusedError("records", f"it has the records {', '.join(sorted(records)) or 'none'}")
        tensors = read_arrays(dict(records[ARRAYS]), self._expected)
        up, _ = self._decoded(tensors)
        nonnegative, steps = self.uploads.algorithm.nonnegative, self._steps(size)
        statistics = guard.without_constants(tensors["statistics"], self._begun)
        guard.check_numbers(up, self._statistics.views(statistics), nonnegative=nonnegative, steps=steps)
        with report_full_disk(self._file(client)):
            self._file(client).write_bytes(save(tensors))
        lengths = guard.lengths(up, statistics, steps=steps is None)
        return Upload(lengths, loss, samples or 1, nbytes(tensors.values()), bool(numbers.get("fresh")))

    def give(self, client: int, upload: Upload, limits: Mapping[str, float]) -> tuple[Shard, Answer]:
        """A client's upload from disk, no longer than `limits`, as an engine of this machine would give it."""
        tensors = {name: t.to(self._like.device) for name, t in load_file(self._file(client)).items()}
        self._file(client).unlink()
        up, payload = self._decoded(tensors)
        up = guard.clipped(up, upload.lengths, limits)
        loss = self._like.new_tensor(upload.loss)
        answer = Answer(up, (), tensors["statistics"], loss, upload.samples, None, payload)
        return Shard(client, np.arange(0), None), answer

    def drop(self, client: int) -> None:
        """Forget a client's upload."""
        self._file(client).unlink(missing_ok=True)

    def _file(self, client: int) -> Path:
        return self.spool / f"{client}.safetensors"

    def _decoded(self, tensors: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        """The Up that arrived, and what travelled of it."""
        payload = {name.removeprefix("up."): t for name, t in tensors.items() if name.startswith("up.")}
        try:
            return self.uploads.decode(payload, self._up), payload
        except InputError as error:
            raise RefusedError("not-finite" if "not finite" in str(error) else "garbage", str(error)) from None

    def _steps(self, samples: int | None) -> int | None:
        """The most local steps that a client with so many samples does in a round; None where that is not known."""
        t = self.training
        if t.steps:
            return t.steps
        return (t.epochs or 1) * math.ceil(samples / t.batch_size) if samples else None
