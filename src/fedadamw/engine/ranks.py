"""Ranks: processes under torchrun that share the clients of each round; one all_reduce a field sums their uploads.

Every rank holds the whole server state and computes the server's update itself, from the same sums. Only rank 0 keeps
clients' memories and writes files.
"""

import atexit
import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fedadamw.algorithm import AnyState
from fedadamw.engine.client import Shard
from fedadamw.engine.states import iterate_tensors, map_tensors
from fedadamw.io.disk import report_full_disk


class RankLostError(RuntimeError):
    """Another rank of the run is gone. With Gloo the checkpoint holds the last complete round; with NCCL perhaps only
    the last one that `checkpoint_every` asked for.
    """


TIMEOUT = timedelta(minutes=30)  # for the slowest rank of a round


class Team(ABC):
    """The processes that share a run, as one of them sees them."""

    rank: int
    size: int
    device: torch.device  # of the tensors that are summed
    waited_s: float = 0.0  # so far, for other processes and for what they send

    @abstractmethod
    def share(self, shards: Iterable[Shard], work: Callable[[Shard], int]) -> Iterable[Shard]:
        """The clients that this rank trains; `work(shard)` is the amount of work of each."""

    @abstractmethod
    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks."""

    @abstractmethod
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by rank 0's."""

    def agree(self, *, stop: bool = False) -> bool:
        """Whether rank 0 wants to stop; every rank calls this at the end of a round."""
        wish = torch.tensor([float(stop)], device=self.device)
        self.broadcast([wish])
        return bool(wish)

    @abstractmethod
    def share_tensors(self, make: Callable[[], Iterable[Tensor]]) -> list[Tensor]:
        """The CPU tensors that `make` returns, read-only and in memory once a machine, however many ranks it has."""


class Alone(Team):
    """One process: nothing to share or to sum."""

    rank, size, device = 0, 1, torch.device("cpu")

    def share(self, shards: Iterable[Shard], work: Callable[[Shard], int]) -> Iterable[Shard]:
        return shards

    def sum(self, tensors: Iterable[Tensor]) -> None: ...

    def broadcast(self, tensors: Iterable[Tensor]) -> None: ...

    def share_tensors(self, make: Callable[[], Iterable[Tensor]]) -> list[Tensor]:
        return list(make())


ALONE = Alone()


class Ranks(Team):
    """This process among those that torchrun started; the constructor joins their group."""

    def __init__(self, device: torch.device) -> None:
        if not dist.is_initialized():
            atexit.register(_leave)
            cuda = device.type == "cuda"
            dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT, device_id=device if cuda else None)
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device

    def share(self, shards: Iterable[Shard], work: Callable[[Shard], int]) -> Iterable[Shard]:
        """Clients with the most work are assigned first, each to the rank with the least."""
        every = list(shards)
        places = assign_clients([work(shard) for shard in every], self.size)[self.rank]
        return [shard for i, shard in enumerate(every) if i in places]

    def sum(self, tensors: Iterable[Tensor]) -> None:
        with self._waiting():
            for t in tensors:
                dist.all_reduce(t)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        with self._waiting():
            for t in tensors:
                dist.broadcast(t, 0)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """A context that waits for all ranks, and counts the seconds."""
        start = time.perf_counter()
        with _waiting_for_ranks():
            yield
        self.waited_s += time.perf_counter() - start

    def share_tensors(self, make: Callable[[], Iterable[Tensor]]) -> list[Tensor]:
        """A machine's first rank makes the tensors and writes them to files; all its ranks map these."""
        machine, first = os.environ["GROUP_RANK"], os.environ["LOCAL_RANK"] == "0"
        written: list[_File] = []
        try:
            for tensor in make() if first else ():
                written.append(_File.of(tensor))
                written[-1].write(tensor)
            with _waiting_for_ranks():
                everyone: list[Any] = [None] * self.size
                dist.all_gather_object(everyone, (machine, written))
                files: list[_File] = next((f for where, f in everyone if where == machine and f), [])
                tensors = [file.map_tensor() for file in files]
                dist.barrier()
        finally:
            for file in written:
                file.close()
        return tensors


def _leave() -> None:
    """At exit: end the group's threads, which would end the process with SIGABRT if they were still there."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _waiting_for_ranks() -> Iterator[None]:
    """A context that waits for all ranks; raises RankLostError if one does not come."""
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(f"lost another rank ({str(error).splitlines()[0]})") from error


def assign_clients(works: Sequence[int], ranks: int) -> list[set[int]]:
    """The clients that each rank trains, balanced by their work; at least one each if there are enough."""
    loads, places = [0] * ranks, [set[int]() for _ in range(ranks)]
    for i in sorted(range(len(works)), key=lambda i: -works[i]):
        rank = loads.index(min(loads))
        loads[rank] += works[i]
        places[rank].add(i)
    return places


def current_team(device: torch.device) -> Team:
    """The ranks that torchrun's environment says this process belongs to; ALONE without it."""
    return Ranks(device) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ALONE


class _File(NamedTuple):
    """A tensor in a file, for the processes of one machine."""

    descriptor: int  # open in the process that made it
    path: str
    shape: torch.Size
    dtype: torch.dtype

    @staticmethod
    def of(tensor: Tensor) -> "_File":
        """A new empty file: in memory if the system can (memfd_create), else on disk."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("fedadamw")
            path = f"/proc/{os.getpid()}/fd/{descriptor}"
        else:
            descriptor, path = tempfile.mkstemp(prefix="fedadamw-")
        return _File(descriptor, path, tensor.shape, tensor.dtype)

    def close(self) -> None:
        """Close it, once all have mapped it; it disappears with the last mapping."""
        os.close(self.descriptor)
        if not self.path.startswith("/proc/"):
            os.unlink(self.path)  # noqa: PTH108

    def write(self, tensor: Tensor) -> None:
        """Write the tensor to the file."""
        with report_full_disk(Path(self.path)), open(self.path, "r+b") as file:
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)

    def map_tensor(self) -> Tensor:
        """The tensor, in memory shared with every process that maps the file."""
        if not self.shape.numel():
            return torch.empty(self.shape, dtype=self.dtype)
        flat = torch.from_file(self.path, shared=True, size=self.shape.numel(), dtype=self.dtype)
        return flat.view(self.shape)


def gather_states(mine: dict[int, AnyState], count: int, template: AnyState, ranks: Team) -> dict[int, AnyState]:
    """The states of all ranks, by place among the `count` sampled clients; `mine` has this rank's."""
    if ranks.size == 1 or template == ():
        return mine
    there = torch.zeros(count, dtype=torch.float32, device=next(iterate_tensors(template)).device)
    rows = map_tensors(template, lambda t: t.new_zeros(count, *t.shape))
    for place, state in mine.items():
        there[place] = 1
        for row, t in zip(iterate_tensors(rows), iterate_tensors(state), strict=True):
            row[place] = t
    ranks.sum([there, *iterate_tensors(rows)])
    places = [int(i) for i in there.nonzero().flatten()]
    return {i: map_tensors(rows, lambda t: t[i].clone()) for i in places}  # noqa: B023  (called at once)


def scatter_states(states: Sequence[AnyState], template: AnyState, ranks: Team) -> list[AnyState]:
    """Rank 0's states of the sampled clients, None for those without one, on every rank."""
    if ranks.size == 1 or template == ():
        return list(states)
    mine = {i: state for i, state in enumerate(states) if state is not None} if ranks.rank == 0 else {}
    gathered = gather_states(mine, len(states), template, ranks)
    return [gathered.get(i) for i in range(len(states))]
