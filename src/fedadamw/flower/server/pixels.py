"""The nodes' sums of their pixels, if the server has no images and is given no mean and standard deviation.

Nodes tell them at their hello. Once the first round's clients are online, the sums are pooled, and kept for the run.
"""

from collections.abc import Iterable, Sequence
from math import prod

from flwr.app import Message

from fedadamw.data.pixel_sums import check_pixel_sums, pool_pixel_sums
from fedadamw.flower.protocol import ARRAYS, PIXELS
from fedadamw.flower.wire import ArraySpec, RefusedError, read_arrays
from fedadamw.validation import InputError


class PixelSums:
    """Checks and keeps clients' sums. shape: of an image. most: the largest number of images that a node may claim."""

    def __init__(self, shape: Sequence[int], most: int) -> None:
        self.most, self.area = most, prod(shape[1:])
        self._spec = {PIXELS: ArraySpec((shape[0], 3), "int64")}
        self._sums: dict[int, list[list[int]]] = {}  # by client

    def add(self, client: int, reply: object, images: int | None) -> None:
        """Keep the sums in a client's hello, which has so many `images`; raises RefusedError if no images have them."""
        assert isinstance(reply, Message)  # its numbers were read
        records = reply.content.array_records
        if set(records) != {ARRAYS}:
            raise RefusedError("records", "it has no sums of its pixels")
        sums: list[list[int]] = read_arrays(dict(records[ARRAYS]), self._spec)[PIXELS].tolist()
        try:
            check_pixel_sums(sums, self.area, images, self.most)
        except InputError as error:
            raise RefusedError(PIXELS, str(error)) from None
        self._sums[client] = sums

    def pool(self, clients: Iterable[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and standard deviation of each channel of the clients' scaled pixels."""
        return pool_pixel_sums([self._sums[client] for client in clients])
