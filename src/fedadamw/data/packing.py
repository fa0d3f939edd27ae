"""Several short texts in one row: which token of a batch goes where."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedadamw.task import copy_to


class Packed(NamedTuple):
    """The texts of a batch (n, length) in fewer rows of the same length, one after the other."""

    at: Tensor  # (rows, length) place of each token in the flat batch; 0 for padding
    real: Tensor  # (rows, length) bool: not padding

    def take(self, batch: Tensor, padding: int = 0) -> Tensor:
        """Return the numbers of a batch (n, length) in packed rows."""
        return torch.where(self.real, batch.flatten().gather(0, self.at.flatten()).view(self.at.shape), padding)

    @property
    def positions(self) -> Tensor:
        """The place of each token in its text, (rows, length)."""
        return self.at % self.at.shape[1]

    @property
    def texts(self) -> Tensor:
        """The number of each token's text, (rows, length); -1 for padding."""
        return torch.where(self.real, self.at // self.at.shape[1], -1)

    @property
    def mask(self) -> Tensor:
        """Whether a token attends to another: one of its own text, not later, (rows, 1, length, length) bool."""
        texts = self.texts
        same = texts[:, :, None] == texts[:, None, :]
        return (same & torch.ones_like(same[0]).tril())[:, None]

    def put_back(self, rows: Tensor, n: int) -> Tensor:
        """Return numbers (rows, length) as a batch (n, length), 0 for padding. `take` undone, without sums."""
        length = self.at.shape[1]
        here = torch.arange(rows.numel(), device=rows.device)
        places = torch.where(self.real, self.at, n * length).flatten()  # of padding: one too many, cut off
        found = here.new_full((n * length + 1,), -1).scatter(0, places, here)[:-1]
        return torch.where(found >= 0, rows.flatten().gather(0, found.clamp(min=0)), 0).view(n, length)


def pack(lengths: Tensor, length: int, device: torch.device) -> Packed:
    """Pack texts of `lengths` (n,), on the CPU, into as few rows of `length` tokens as the first-fit rule finds.

    Stacked clients get as many rows as the client that needs most.
    """
    places: Tensor = _Places.apply(lengths, length, device)  # type: ignore[no-untyped-call]
    return Packed(places.clamp(min=0), places >= 0)


def arrange(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Return the texts of each row: the longest first, each in the first row with room for it."""
    rows: list[list[int]] = []
    free: list[int] = []
    for text in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, room in enumerate(free) if room >= lengths[text]), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(length)
        rows[row].append(text)
        free[row] -= lengths[text]
    return rows


def _find_places(lengths: Sequence[int], length: int) -> Tensor:
    """Return the place in the flat batch of each packed token, (rows, length); -1 for padding."""
    rows = arrange(lengths, length)
    places = torch.full((len(rows), length), -1)
    for row, texts in zip(places, rows, strict=True):
        found = torch.cat([torch.arange(i * length, i * length + lengths[i]) for i in texts])
        row[: len(found)] = found
    return places


class _Places(torch.autograd.Function):
    """`_find_places` of a client's texts, or, under vmap, of each stacked client's."""

    @staticmethod
    def forward(lengths: Tensor, length: int, device: torch.device) -> Tensor:
        return copy_to(_find_places(lengths.tolist(), length), device)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Saves nothing: there is no gradient."""

    @staticmethod
    def vmap(
        info: Any, in_dims: Sequence[int | None], lengths: Tensor, length: int, device: torch.device
    ) -> tuple[Tensor, int]:
        """The places of every client, (clients, rows, length)."""
        every = [_find_places(own.tolist(), length) for own in lengths.unbind(in_dims[0] or 0)]
        places = torch.full((len(every), max(map(len, every)), length), -1)
        for client, own in zip(places, every, strict=True):
            client[: len(own)] = own
        return copy_to(places, device), 0
