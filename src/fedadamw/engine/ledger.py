"""What the server must know of its clients after a restart: which of their answers counted, and how long these were."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedadamw.checkpoint import CheckpointError

NAME = "federation"  # of its tensor in a checkpoint


class Page(NamedTuple):
    """As of the end of a round."""

    counted: dict[int, int]  # client -> the last round (from 1) in which its answer counted
    past: list[list[Mapping[str, float]]]  # lengths of the uploads of the last rounds
    samples: dict[int, int]  # client -> how many it last said it has; none where that is not to be told


class Ledger:
    """The store of a simulation whose clients keep their memories themselves: a page a round, the last two kept."""

    def __init__(self) -> None:
        self._pages: dict[int, Page] = {0: Page({}, [], {})}

    @property
    def page(self) -> Page:
        """The last one."""
        return self._pages[max(self._pages)]

    def turn(self, round_: int, page: Page) -> None:
        """Round `round_` (from 1) is over."""
        last = max(self._pages)
        self._pages = {last: self._pages[last], round_: page}

    def get(self, client: int, round_: int) -> Any:
        """Nothing of a client is here."""
        return None

    def put(self, client: int, round_: int, memory: Any) -> None:
        """Clients keep their memories themselves."""
        raise AssertionError("nothing to keep")

    def tensors(self, round_: int) -> dict[str, Tensor]:
        """The page of round `round_`, as bytes of JSON."""
        page = self._pages[max(r for r in self._pages if r <= round_)]
        text = json.dumps([sorted(page.counted.items()), page.past, sorted(page.samples.items())])
        return {NAME: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}

    def restore(self, round_: int, tensors: Mapping[str, Tensor]) -> None:
        """Go back to the end of round `round_`."""
        if round_ == 0:
            return
        if NAME not in tensors:
            raise CheckpointError("the checkpoint is of a simulation, not of a federation")
        self._pages = {round_: read_page(tensors[NAME])}


def read_page(tensor: Tensor) -> Page:
    """The page that a checkpoint has; those of earlier versions say nothing of samples."""
    counted, past, *samples = json.loads(bytes(tensor.tolist()))
    return Page(dict(counted), past, dict(samples[0]) if samples else {})
