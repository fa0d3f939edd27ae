"""Models larger than a card: a group of processes trains one client, and each holds a part of the frozen weights.

FSDP brings a layer's weights together when it is needed (torch.distributed.fsdp). What is trained is small with LoRA:
every process has all of it as its flat vector, computes the gradient of its rows of a batch, and one all_reduce sums
these. So all processes of a group take the same local steps, and to the rest of a run a group is one rank.

A shard is a part of the weights here; `client.Shard` is a client's part of the data.
"""

from collections.abc import Iterable, Iterator
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fedadamw.engine.ranks import Ranks
from fedadamw.engine.workspace import micro_batches
from fedadamw.task import Batch
from fedadamw.validation import check


class Groups(Ranks):
    """Groups of `shards` neighbouring processes, each of them one rank."""

    def __init__(self, device: torch.device, shards: int) -> None:
        super().__init__(device)
        processes = self.size
        check(processes % shards == 0, f"shards={shards}: {processes} ranks are not a multiple; see --ranks")
        self.shards, self.member = shards, self.rank % shards
        self.rank, self.size = self.rank // shards, processes // shards
        groups = [dist.new_group(list(range(i, i + shards))) for i in range(0, processes, shards)]
        self.group = groups[self.rank]
        self.leads = self.rank == self.member == 0

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all groups, whose processes have the same."""
        tensors = list(tensors)
        if self.member:
            for t in tensors:
                t.zero_()
        super().sum(tensors)

    def broadcast(self, tensors: Iterable[Tensor], source: int = 0) -> None:
        super().broadcast(tensors, source * self.shards)

    def own_rows(self, batch: Batch, size: int | None) -> Iterator[tuple[Batch, Tensor | None]]:
        """Yield as many rows in every process, since they compute together: if need be some with a weight of 0."""
        n = len(batch[0])
        count = -(-n // self.shards)
        rows = torch.arange(self.member * count, (self.member + 1) * count, device=batch[0].device)
        mine = tuple(t[rows.clamp(max=n - 1).to(t.device)] for t in batch)
        for *part, weights in micro_batches((*mine, (rows < n).float()), size):
            yield tuple(part), weights

    def sum_rows(self, tensors: Iterable[Tensor]) -> None:
        with self._waiting():
            for t in tensors:
                dist.all_reduce(t, group=self.group)

    def shard(self, model: nn.Module) -> None:
        """Split the frozen weights of the model's layers over the group; call it before any flat vector is made."""
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import fully_shard

        layers = find_layers(model)
        check(bool(layers), f"shards={self.shards}: transformers does not say which layers of this model to split")
        mesh = DeviceMesh.from_group(self.group, self.device.type)
        for layer in layers:
            trained = {p for p in layer.parameters() if p.requires_grad}
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=trained)


def find_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers whose weights are split: those that transformers keeps whole on a device."""
    kinds = {kind for module in model.modules() for kind in getattr(module, "_no_split_modules", None) or ()}
    return [module for module in model.modules() if type(module).__name__ in kinds]


@cache
def join_groups(device: torch.device, shards: int) -> Groups:
    """This process's group, joined once."""
    return Groups(device, shards)
