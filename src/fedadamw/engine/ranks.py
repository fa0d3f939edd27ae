"""Ranks: processes under torchrun that share the clients of each round; their sums meet in one all_reduce a field.

Every rank holds the whole server state and computes the server's step itself, from the same sums. Rank 0 alone keeps
clients' memories and writes files.
"""

import atexit
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fedadamw.engine.client import Shard
from fedadamw.engine.states import leaves, mapped
from fedadamw.io.disk import report_full_disk


class RankLostError(RuntimeError):
    """Another rank of the run is gone. With Gloo the last whole round is in the checkpoint; with NCCL it may be the
    last that `checkpoint_every` asked for.
    """


PATIENCE = timedelta(minutes=30)  # for the slowest rank of a round


class Team(ABC):
    """The processes that share a run, seen from one of them."""

    rank: int
    size: int

    @abstractmethod
    def share(self, shards: Iterable[Shard], work: Callable[[Shard], int]) -> Iterable[Shard]:
        """The clients that this rank trains; `work` says how much that is for each."""

    @abstractmethod
    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks."""

    @abstractmethod
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by rank 0's."""

    @abstractmethod
    def shared(self, make: Callable[[], Iterable[Tensor]]) -> list[Tensor]:
        """The CPU tensors that `make` gives, to be read only: in memory once a machine, however many ranks it has."""


class Alone(Team):
    """One process: nothing to share, nothing to sum."""

    rank, size = 0, 1

    def share(self, shards: Iterable[Shard], work: Callable[[Shard], int]) -> Iterable[Shard]:
        return shards

    def sum(self, tensors: Iterable[Tensor]) -> None: ...

    def broadcast(self, tensors: Iterable[Tensor]) -> None: ...

    def shared(self, make: Callable[[], Iterable[Tensor]]) -> list[Tensor]:
        return list(make())


ALONE = Alone()


class Ranks(Team):
    """This process among those that torchrun started; joins them when it is made."""

    def __init__(self, device: torch.device) -> None:
        if not dist.is_initialized():
            atexit.register(_leave)
            cuda = device.type == "cuda"
            dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE, device_id=device if cuda else None)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def share(self, shards: Iterable[Shard], work: Callable[[Shard], int]) -> Iterable[Shard]:
        """Clients with the most work are handed out first, each to the rank with the least."""
        every = list(shards)
        places = handed_out([work(shard) for shard in every], self.size)[self.rank]
        return [shard for i, shard in enumerate(every) if i in places]

    def sum(self, tensors: Iterable[Tensor]) -> None:
        with _others():
            for t in tensors:
                dist.all_reduce(t)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        with _others():
            for t in tensors:
                dist.broadcast(t, 0)

    def shared(self, make: Callable[[], Iterable[Tensor]]) -> list[Tensor]:
        """A machine's first rank makes them and writes them to files; all its ranks map these."""
        machine, first = os.environ["GROUP_RANK"], os.environ["LOCAL_RANK"] == "0"
        written: list[_File] = []
        try:
            for tensor in make() if first else ():
                written.append(_File.of(tensor))
                written[-1].write(tensor)
            with _others():
                everyone: list[Any] = [None] * self.size
                dist.all_gather_object(everyone, (machine, written))
                files: list[_File] = next((f for where, f in everyone if where == machine and f), [])
                mapped = [file.mapped() for file in files]
                dist.barrier()
        finally:
            for file in written:
                file.close()
        return mapped


def _leave() -> None:
    """At exit: end the group's threads, which would end the process with SIGABRT if they were still there."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _others() -> Iterator[None]:
    """A block that waits for all ranks; RankLostError where one does not come."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(f"lost another rank ({str(error).splitlines()[0]})") from error


def handed_out(works: Sequence[int], ranks: int) -> list[set[int]]:
    """Which of the clients each rank trains, by their work: at least one each, where there are as many."""
    loads, places = [0] * ranks, [set[int]() for _ in range(ranks)]
    for i in sorted(range(len(works)), key=lambda i: -works[i]):
        rank = loads.index(min(loads))
        loads[rank] += works[i]
        places[rank].add(i)
    return places


def team(device: torch.device) -> Team:
    """The ranks that this process is one of, by torchrun's environment; Alone without it."""
    return Ranks(device) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ALONE


class _File(NamedTuple):
    """A tensor in a file, for the processes of one machine."""

    descriptor: int  # open in the process that made it
    path: str
    shape: torch.Size
    dtype: torch.dtype

    @staticmethod
    def of(tensor: Tensor) -> "_File":
        """A new file, empty: in memory and without a name of its own where the system has such, else on the disk."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("fedadamw")
            path = f"/proc/{os.getpid()}/fd/{descriptor}"
        else:
            descriptor, path = tempfile.mkstemp(prefix="fedadamw-")
        return _File(descriptor, path, tensor.shape, tensor.dtype)

    def close(self) -> None:
        """All have mapped it: it goes with the last mapping."""
        os.close(self.descriptor)
        if not self.path.startswith("/proc/"):
            os.unlink(self.path)  # noqa: PTH108

    def write(self, tensor: Tensor) -> None:
        """Put the tensor there."""
        with report_full_disk(Path(self.path)), open(self.path, "r+b") as file:
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)

    def mapped(self) -> Tensor:
        """The tensor, its memory shared with all who map the file."""
        if not self.shape.numel():
            return torch.empty(self.shape, dtype=self.dtype)
        flat = torch.from_file(self.path, shared=True, size=self.shape.numel(), dtype=self.dtype)
        return flat.view(self.shape)


def gathered(mine: dict[int, Any], count: int, template: Any, ranks: Team) -> dict[int, Any]:
    """The states of all ranks, by place among the `count` clients of a round; `mine` has this rank's."""
    if ranks.size == 1 or template == ():
        return mine
    there = torch.zeros(count, dtype=torch.float32, device=next(leaves(template)).device)
    rows = mapped(template, lambda t: t.new_zeros(count, *t.shape))
    for place, state in mine.items():
        there[place] = 1
        for row, t in zip(leaves(rows), leaves(state), strict=True):
            row[place] = t
    ranks.sum([there, *leaves(rows)])
    places = [int(i) for i in there.nonzero().flatten()]
    return {i: mapped(rows, lambda t: t[i].clone()) for i in places}  # noqa: B023  (called at once)


def spread(kept: Sequence[Any], template: Any, ranks: Team) -> list[Any]:
    """Rank 0's memories of a round's clients, None where there is none, on every rank."""
    if ranks.size == 1 or template == ():
        return list(kept)
    held = {i: state for i, state in enumerate(kept) if state is not None} if ranks.rank == 0 else {}
    found = gathered(held, len(kept), template, ranks)
    return [found.get(i) for i in range(len(kept))]
