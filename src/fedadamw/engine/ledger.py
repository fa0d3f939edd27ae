"""What a federation's server must remember of its clients: accepted answers, norms of uploads, sample counts."""

import json
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedadamw.checkpoint import CheckpointError

TENSOR_NAME = "federation"  # in a checkpoint


class JobsPage(NamedTuple):
    """The jobs of a buffered run at the end of a version."""

    clock_s: float  # how long the run has gone on
    begun: int  # how many jobs began over the run
    at_work: list[list[int]]  # (number, client, version, repeat) of those without an answer


class Page(NamedTuple):
    """The ledger at the end of a round."""

    counted: dict[int, int]  # client -> the last round (from 1) in which its answer was accepted
    past: list[list[Mapping[str, float]]]  # norms of the uploads of the last rounds
    samples: dict[int, int]  # client -> the sample count it last reported; empty with federation.sample_counts=false
    jobs: JobsPage | None = None  # of a buffered run


class Ledger:
    """A page for each round, of which the last two are kept. Clients keep their memories themselves."""

    def __init__(self) -> None:
        self._pages: dict[int, Page] = {0: Page({}, [], {})}

    @property
    def page(self) -> Page:
        """The last page."""
        return self._pages[max(self._pages)]

    def add(self, round_: int, page: Page) -> None:
        """Add the page of round `round_` (from 1)."""
        last = max(self._pages)
        self._pages = {last: self._pages[last], round_: page}

    def tensors(self, round_: int) -> dict[str, Tensor]:
        """The page of round `round_`, as bytes of JSON."""
        page = self._pages[max(r for r in self._pages if r <= round_)]
        facts = [sorted(page.counted.items()), page.past, sorted(page.samples.items())]
        text = json.dumps(facts if page.jobs is None else [*facts, page.jobs])
        return {TENSOR_NAME: torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)}

    def restore(self, round_: int, tensors: Mapping[str, Tensor]) -> None:
        """Go back to the end of round `round_`."""
        if round_ == 0:
            return
        if TENSOR_NAME not in tensors:
            raise CheckpointError("the checkpoint is of a simulation, not of a federation")
        self._pages = {round_: read_page(tensors[TENSOR_NAME])}


def read_page(tensor: Tensor) -> Page:
    """The page in a checkpoint; earlier versions wrote no sample counts."""
    counted, past, *others = json.loads(bytes(tensor.tolist()))
    samples, jobs = [*others, None, None][:2]
    return Page(dict(counted), past, dict(samples or []), None if jobs is None else JobsPage(*jobs))
