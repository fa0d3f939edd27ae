"""Ranks: processes under torchrun that share the clients of each round; one all_reduce a field sums their uploads.

Every rank holds the whole server state and computes the server's update itself, from the same sums. Only rank 0 keeps
clients' memories and writes files.
"""

import atexit
import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # imported once there is a group, it would keep it: see _leave
from torch import Tensor, nn

from fedadamw.algorithm import AnyState
from fedadamw.engine.states import iterate_tensors, map_tensors
from fedadamw.engine.workspace import micro_batches
from fedadamw.io.disk import report_full_disk
from fedadamw.task import Batch
from fedadamw.validation import check


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
    alone = False  # whether it is a single process
    leads = True  # whether it is the one that keeps clients' memories and writes files
    member = 0  # its place among the processes that train the same clients, see shards.py
    waited_s: float = 0.0  # so far, for other processes and for what they send

    @abstractmethod
    def share(self, works: Sequence[int]) -> Collection[int]:
        """The places of the clients that this rank trains among all of a round, whose amounts of work are `works`."""

    @abstractmethod
    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks."""

    @abstractmethod
    def broadcast(self, tensors: Iterable[Tensor], source: int = 0) -> None:
        """Replace each tensor by that of the rank `source`."""

    def own_rows(self, batch: Batch, size: int | None) -> Iterator[tuple[Batch, Tensor | None]]:
        """Yield this process's rows of a batch, at most `size` at once, and their weights; None: each counts."""
        yield from ((part, None) for part in micro_batches(batch, size))

    def sum_rows(self, tensors: Iterable[Tensor]) -> None:  # noqa: B027  (one process has all rows)
        """Replace each tensor by its sum over the processes that train the same clients."""

    def shard(self, model: nn.Module) -> None:  # noqa: B027  (one process has the whole model)
        """Split the frozen weights of the model's layers over the processes that train the same clients."""

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

    rank, size, device, alone = 0, 1, torch.device("cpu"), True

    def share(self, works: Sequence[int]) -> Collection[int]:
        return range(len(works))

    def sum(self, tensors: Iterable[Tensor]) -> None: ...

    def broadcast(self, tensors: Iterable[Tensor], source: int = 0) -> None: ...

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
        self.leads = self.rank == 0

    def share(self, works: Sequence[int]) -> Collection[int]:
        """Clients with the most work are assigned first, each to the rank with the least."""
        return assign_clients(works, self.size)[self.rank]

    def sum(self, tensors: Iterable[Tensor]) -> None:
        with self._waiting():
            for t in tensors:
                dist.all_reduce(t)

    def broadcast(self, tensors: Iterable[Tensor], source: int = 0) -> None:
        with self._waiting():
            for t in tensors:
                dist.broadcast(t, source)

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """A context that waits for all ranks, and counts the seconds, without those of this rank's own work."""
        self._finish_queued()  # whose errors are this rank's
        start = time.perf_counter()
        with _waiting_for_ranks():
            yield
            self._finish_queued()
        self.waited_s += time.perf_counter() - start

    def _finish_queued(self) -> None:
        """Wait for what is queued on a GPU; NCCL's operations, too, are only queued there when their calls return."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def share_tensors(self, make: Callable[[], Iterable[Tensor]]) -> list[Tensor]:
        """A machine's first rank makes the tensors and writes them to files; all its ranks map these."""
        machine, first = os.environ["GROUP_RANK"], os.environ["LOCAL_RANK"] == "0"
        written: list[_File] = []
        try:
            for tensor in make() if first else ():
                written.append(_File.of(tensor))
                written[-1].write(tensor)
            with _waiting_for_ranks():
                everyone: list[Any] = [None] * dist.get_world_size()
                dist.all_gather_object(everyone, (machine, written))
                files: list[_File] = next((f for where, f in everyone if where == machine and f), [])
                tensors = [file.map_tensor() for file in files]
                dist.barrier()
        finally:
            for file in written:
                file.close()
        return tensors


def _leave() -> None:
    """At exit: end the group's threads, which may end the process with SIGABRT if they are still there.

    They end with the last reference to the group. Functions of torch.distributed.nn have the group that there is when
    they are imported as a default.
    """
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


def current_team(device: torch.device, shards: int = 1) -> Team:
    """The ranks that torchrun's environment says this process belongs to, in groups of `shards`; ALONE without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        check(shards == 1, f"shards={shards} needs as many processes: --ranks {shards}, or a multiple")
        return ALONE
    if shards == 1:
        return Ranks(device)
    from fedadamw.engine.shards import join_groups  # which imports this module

    return join_groups(device, shards)


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


def scatter_states(states: Iterable[AnyState | None], template: AnyState, ranks: Team) -> Iterator[AnyState | None]:
    """Yield rank 0's states of the sampled clients, None for those without one, on every rank: one after the other.

    A rank keeps what it needs of them, so that no device holds the states of all clients.
    """
    if ranks.alone or template == ():
        yield from states
        return
    for state in states:
        there = torch.tensor([float(state is not None)], device=ranks.device)
        ranks.broadcast([there])
        yield _pass_on(state, template, ranks, source=0) if there else None


def gather_states(
    mine: Mapping[int, AnyState], count: int, template: AnyState, ranks: Team
) -> Iterator[tuple[int, AnyState]]:
    """Yield the states of all ranks by place among the `count` sampled clients, on every rank: one after the other.

    mine: this rank's.
    """
    if ranks.alone or template == ():
        yield from mine.items()
        return
    owners = torch.zeros(count, device=ranks.device)
    for place in mine:
        owners[place] = ranks.rank + 1
    ranks.sum([owners])
    for place, owner in enumerate(owners.tolist()):
        if owner:
            yield place, _pass_on(mine.get(place), template, ranks, source=int(owner) - 1)


def _pass_on(state: AnyState | None, template: AnyState, ranks: Team, *, source: int) -> AnyState:
    """Return the state that the rank `source` has, on every rank."""
    found = map_tensors(template, torch.empty_like) if state is None else map_tensors(state, _without_negative_zero)
    ranks.broadcast(iterate_tensors(found), source)
    return found


def _without_negative_zero(t: Tensor) -> Tensor:
    """Return a copy in which -0.0 is 0.0, so that runs have the bits of earlier versions, which summed over ranks."""
    return t + 0
