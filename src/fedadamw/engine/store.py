"""Clients' memories between rounds (SCAFFOLD's control variates, residuals): in RAM, or on disk for many clients.

A round that fails must leave no trace, and a resumed run must find what its checkpoint's round left. So a memory is
written for a round and read as of a round: the newest one that is not later.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedadamw.algorithm import AnyState
from fedadamw.checkpoint import CheckpointError, write_atomically
from fedadamw.io.disk import report_full_disk, reserve_space

COUNT = "memories_on_disk"  # in a checkpoint: the number of clients with a memory in the files beside it
Memory = AnyState


class Store(Protocol):
    """Keeps one memory for each client."""

    def get(self, client: int, round_: int) -> Memory | None:
        """The memory of `client` as of the end of round `round_`; None before its first round."""

    def put(self, client: int, round_: int, memory: Memory) -> None:
        """Keep `memory` for `client` as of the end of round `round_`."""

    def tensors(self, round_: int) -> dict[str, Tensor]:
        """What a checkpoint of round `round_` must hold; no earlier round is asked for after that."""

    def restore(self, round_: int, tensors: Mapping[str, Tensor]) -> None:
        """Go back to the end of round `round_`, from what `tensors` gave; CheckpointError if memories are lost."""


class InMemory:
    """Memories in this process, on the CPU; a checkpoint holds them all. `get` moves them to the template's device."""

    def __init__(self, template: Memory) -> None:
        self.template = template
        self._kept: dict[int, list[tuple[int, Memory]]] = {}  # client -> (round, memory), at most the last two

    def get(self, client: int, round_: int) -> Memory | None:
        memory = self._newest(client, round_)
        if memory is None:
            return None
        return type(memory)(*(t.to(like.device) for t, like in zip(memory, self.template, strict=True)))

    def put(self, client: int, round_: int, memory: Memory) -> None:
        before = [kept for kept in self._kept.get(client, ()) if kept[0] < round_]
        self._kept[client] = [*before[-1:], (round_, type(memory)(*(t.cpu() for t in memory)))]

    def _newest(self, client: int, round_: int) -> Memory | None:
        """As `get`, on the CPU."""
        return next((memory for of, memory in reversed(self._kept.get(client, [])) if of <= round_), None)

    def tensors(self, round_: int) -> dict[str, Tensor]:
        kept = {client: self._newest(client, round_) for client in sorted(self._kept)}
        return {
            f"memory.{client}.{field}": t
            for client, memory in kept.items()
            if memory is not None
            for field, t in memory._asdict().items()
        }

    def restore(self, round_: int, tensors: Mapping[str, Tensor]) -> None:
        clients = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("memory.")})
        if COUNT in tensors:
            raise CheckpointError("clients' memories were kept on disk: resume with client_memory=disk")
        if round_ and self.template != () and not clients:
            raise CheckpointError("the checkpoint has no clients' memories")
        own = type(self.template)
        self._kept = {
            i: [(round_, own(*(tensors[f"memory.{i}.{field}"].cpu() for field in own._fields)))] for i in clients
        }


class OnDisk:
    """Memories in one file with three slots for each client, so that those of the last checkpoint and of the last round
    stay. A client gets its slots in its first round; an index of all clients says where they are.
    """

    def __init__(self, folder: Path, clients: int, template: Memory) -> None:
        self.template, self.folder = template, folder
        width: int = sum(t.numel() * t.element_size() for t in template)
        folder.mkdir(parents=True, exist_ok=True)
        self._width = width
        self._file = folder / "memories.bin"
        self._file.touch()
        (folder / "index.bin").touch()
        self._check_shape({"clients": clients, "bytes": width})  # flushes the folder, with all three files in it
        index = _map_integers(folder / "index.bin", (clients, 4))
        self._place, self._rounds = index[:, 0], index[:, 1:]  # place of a client's slots; round of each; 0: none
        self._places = int(self._place.max())
        self._flush_index = index.flush
        self._checkpoint = 0

    def get(self, client: int, round_: int) -> Memory | None:
        slot = self._newest(client, round_)
        if slot is None:
            return None
        return self._unpack(np.fromfile(self._file, np.uint8, self._width, offset=self._start(client, slot)))

    def put(self, client: int, round_: int, memory: Memory) -> None:
        kept = {self._newest(client, self._checkpoint), self._newest(client, round_ - 1)}
        slot = next(i for i in range(3) if i not in kept)
        self._rounds[client, slot] = 0  # a process that dies here leaves an empty slot, not a torn one
        if not self._place[client]:
            self._places += 1
            self._place[client] = self._places
        parts = [t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy() for t in memory]
        with report_full_disk(self._file), open(self._file, "r+b") as file:
            file.seek(self._start(client, slot))
            for part in parts:
                file.write(part)
        self._rounds[client, slot] = round_

    def has(self, client: int, round_: int) -> bool:
        """Whether `client` has a memory of exactly that round."""
        return bool((self._rounds[client] == round_).any())

    def forget_after(self, client: int, round_: int) -> None:
        """Forget the memories of `client` of rounds after `round_`."""
        self._rounds[client][self._rounds[client] > round_] = 0

    def sync(self) -> None:
        """Flush data first, then the index."""
        with report_full_disk(self._file), open(self._file, "r+b") as file:
            os.fsync(file.fileno())
        self._flush_index()

    def tensors(self, round_: int) -> dict[str, Tensor]:
        self.sync()
        self._checkpoint = round_
        return {COUNT: torch.tensor(self._clients_at(round_))}

    def restore(self, round_: int, tensors: Mapping[str, Tensor]) -> None:
        self.check(round_, tensors)
        self._rounds[self._rounds > round_] = 0
        self._checkpoint = round_

    def check(self, round_: int, tensors: Mapping[str, Tensor]) -> None:
        """Raise CheckpointError if memories of the end of round `round_` are lost. It changes nothing."""
        if any(name.startswith("memory.") for name in tensors):
            raise CheckpointError("clients' memories are in the checkpoint: resume with client_memory=memory")
        if round_ and COUNT not in tensors:
            raise CheckpointError("the checkpoint has no clients' memories")
        expected, found = int(tensors.get(COUNT, 0)), self._clients_at(round_)
        if expected != found and round_:
            raise CheckpointError(f"{self.folder}: has memories of {found:,} clients, the checkpoint of {expected:,}")
        ends = (self._place[:, None] - 1) * 3 + np.arange(1, 4)  # of each slot, counted in slots
        kept = (self._rounds > 0) & (self._rounds <= round_)
        needed = int(np.where(kept, ends, 0).max(initial=0)) * self._width
        if self._file.stat().st_size < needed:
            raise CheckpointError(f"{self._file}: is cut short or missing; {needed:,} bytes are needed")

    def _clients_at(self, round_: int) -> int:
        """How many clients have a memory as of the end of round `round_`."""
        return int(((self._rounds > 0) & (self._rounds <= round_)).any(1).sum())

    def _start(self, client: int, slot: int) -> int:
        """The offset of a slot in the file, in bytes."""
        return ((int(self._place[client]) - 1) * 3 + slot) * self._width

    def _newest(self, client: int, round_: int) -> int | None:
        """The slot with the newest memory that is not later than `round_`."""
        of = np.where(self._rounds[client] <= round_, self._rounds[client], 0)
        return int(of.argmax()) if of.any() else None

    def _unpack(self, row: np.ndarray) -> Memory:
        parts, start = [], 0
        for t in self.template:
            end = start + t.numel() * t.element_size()
            content = torch.from_numpy(row[start:end].copy())
            empty = t.numel() == 0  # which has no stride to view it by
            parts.append(t.clone() if empty else content.view(t.dtype).view(t.shape).to(t.device))
            start = end
        return type(self.template)(*parts)

    def _check_shape(self, shape: Mapping[str, int]) -> None:
        about = self.folder / "shape.json"
        try:
            known = json.loads(about.read_text()) if about.exists() else shape
        except ValueError as error:
            raise CheckpointError(f"{about}: cannot be read ({error})") from None
        if known != shape:
            raise CheckpointError(f"{self.folder}: holds memories of other clients ({about.read_text().strip()})")
        write_atomically(about, (json.dumps(shape) + "\n").encode())


def _map_integers(path: Path, shape: tuple[int, int]) -> "np.memmap[tuple[int, int], np.dtype[np.int64]]":
    """The 8-byte integers of a file as an array; a new file is filled with zeros."""
    size = shape[0] * shape[1] * 8
    with report_full_disk(path), open(path, "ab") as file:
        if file.tell() != size:
            os.truncate(path, size)
    reserve_space(path)
    return np.memmap(path, dtype=np.int64, mode="r+", shape=shape)
