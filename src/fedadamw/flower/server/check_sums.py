"""Checks a node's sums over its held-out samples before they count, since a node can send anything."""

from collections.abc import Mapping

from flwr.app import Array, Message
from torch import Tensor

from fedadamw.flower.protocol import ARRAYS, SUMS
from fedadamw.flower.server.check_upload import MAX_LOSS
from fedadamw.flower.server.replies import read_numbers
from fedadamw.flower.wire import ArraySpec, RefusedError, read_arrays
from fedadamw.task import Task
from fedadamw.validation import InputError
from fedadamw.vector import LARGEST_PLAUSIBLE

MAX_SUMS = 2**17  # numbers in a reply; a classifier's are three a class


class SumsChecker:
    """Checks replies to evaluate requests, of the sums of a task."""

    max_nbytes = 8 * MAX_SUMS

    def __init__(self, task: Task) -> None:
        self.task = task

    def check(self, reply: Message | Exception, client: int, held_out: int) -> Tensor:
        """Return a reply's sums (k,); raises RefusedError if they do not count.

        held_out: the number of held-out samples that the client registered with.

        In this order:
        1. a message without an error, with the expected records and no number but the client's: `garbage`, `failed`,
           `records`, `stale`
        2. it is from the client that was asked: `other-client`
        3. one array of float64 numbers: `missing-array`, `extra-array`, `wrong-shape`, `wrong-dtype`, `garbage`
        4. numbers finite, none above LARGEST_PLAUSIBLE; as many samples as registered: `not-finite`, `too-long`,
           `samples`
        5. what the task knows of its sums: `sums`; the loss is below MAX_LOSS: `too-long`
        """
        numbers = read_numbers(reply)
        if not isinstance(reply, Message):
            raise RefusedError("garbage", "it is not a message")
        if numbers.get("client") != client:
            raise RefusedError("other-client", f"it is client {numbers.get('client')!r} now")
        records = reply.content.array_records
        if set(records) != {ARRAYS} or len(numbers) > 1:
            raise RefusedError("records", f"{len(records)} array records and {len(numbers)} numbers, not one of each")
        sums = _read_sums(dict(records[ARRAYS]))
        if not bool(sums.isfinite().all()):
            raise RefusedError("not-finite", "a sum is not finite")
        if float(sums.abs().max()) > LARGEST_PLAUSIBLE:
            raise RefusedError("too-long", f"a sum is above {LARGEST_PLAUSIBLE:g}")
        if float(sums[0]) != held_out:
            raise RefusedError("samples", f"of {float(sums[0]):g} samples; it registered with {held_out} held-out ones")
        try:
            self.task.check_sums(sums, held_out)
        except InputError as error:
            raise RefusedError("sums", str(error)) from None
        loss = self.task.pool(sums).loss
        if loss > MAX_LOSS:
            raise RefusedError("too-long", f"the loss is {loss:.3g}")
        return sums


def _read_sums(arrays: Mapping[str, Array]) -> Tensor:
    """Return the array of sums (k,), whose number k only the task knows."""
    shape = tuple(getattr(arrays.get(SUMS), "shape", (1,)))
    if len(shape) != 1 or not 1 <= shape[0] <= MAX_SUMS:
        raise RefusedError("wrong-shape", f"{SUMS!r} has shape {shape}")
    return read_arrays(arrays, {SUMS: ArraySpec(shape, "float64")})[SUMS]
