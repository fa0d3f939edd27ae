"""Checks an upload before it counts, since a node can send anything. UploadChecker.check lists all checks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from flwr.app import Message
from torch import Tensor

from fedadamw.algorithms.counter import SMALLEST, Q, find_q
from fedadamw.engine.scale import scale_changes
from fedadamw.engine.uploads import Uploads
from fedadamw.flower.protocol import ARRAYS
from fedadamw.flower.server.norm_bounds import Norms, measure_norms
from fedadamw.flower.server.replies import read_numbers
from fedadamw.flower.wire import MAX_HEADER_BYTES, ArraySpec, RefusedError, read_arrays
from fedadamw.settings.training import TrainingSettings
from fedadamw.validation import InputError
from fedadamw.vector import LARGEST_PLAUSIBLE, Layout, Vector, nbytes

MAX_LOSS = 1e6  # nats
Q_DIFFERS = 1e-9  # at most, between machines, as a share
SPARE = 4  # limit on a reply's arrays, in honest uploads; smaller excesses are refused with a more precise reason


class JobName(NamedTuple):
    """What a client was asked to do in a buffered run."""

    version: int  # that it trains from, from 0
    repeat: int  # which of its jobs on that version, from 0


class CheckedUpload(NamedTuple):
    """The facts of an upload that passed; its tensors are on disk."""

    client: int
    norms: Norms  # of its fields
    loss: float  # NaN if it is not told
    samples: int
    steps: int  # local steps, K_i; 0 if the server cannot know them
    nbytes: int
    fresh: bool  # the client's memory was lost and it began a new one


class UploadChecker:
    """Checks replies to train requests.

    up, statistics: an example of an honest client's, for shapes and types. layout: of the statistics. tells_loss: not
    with privacy of samples.
    """

    def __init__(
        self,
        training: TrainingSettings,
        uploads: Uploads,
        up: Any,
        statistics: Vector,
        layout: Layout,
        *,
        tells_loss: bool = True,
    ) -> None:
        self.training, self.uploads, self.up, self.layout = training, uploads, up, layout
        self.tells_loss = tells_loss
        self._first_statistics = statistics.cpu()
        payload = uploads.encode(up, uploads.zero_residual(up.delta), torch.Generator()).payload
        self._specs = {f"up.{name}": ArraySpec.of(t) for name, t in payload.items()}
        self._specs["statistics"] = ArraySpec.of(statistics)
        self.max_nbytes = SPARE * sum(spec.nbytes + MAX_HEADER_BYTES for spec in self._specs.values())
        self._round, self._counts = 0, dict[int, Tensor]()  # t of each round that has begun, for q

    def begin(self, round_: int, down: Any) -> None:
        """Begin round or version `round_`, whose clients start from `down`; uploads of earlier versions may come."""
        self._round = round_
        if self.uploads.algorithm.carried:
            self._counts[round_] = down.t.cpu()

    def check(
        self,
        reply: Message | Exception,
        client: int,
        registered: int | None,
        samples: int | None,
        job: JobName | None = None,
    ) -> tuple[CheckedUpload, dict[str, Tensor]]:
        """Return an upload's facts and its tensors as received; raises RefusedError if it does not count.

        registered: the number of samples that the node registered with. samples: the number it has, if known.
        job: that was asked for, in a buffered run.

        Before this, the Grid's array limit (pull.py): `garbage`. Here, in this order:
        1. a message without an error, with the expected records and numbers: `garbage`, `failed`, `records`, `stale`
        2. it is from the client that was asked, and of the job; loss finite and below MAX_LOSS; samples as registered:
           `other-client`, `other-job`, `not-finite`, `too-long`, `samples`
        3. names, shapes, types and bytes of the arrays: `missing-array`, `extra-array`, `wrong-shape`,
           `wrong-dtype`, `garbage`
        4. the codec decodes them: `garbage`, `not-finite`
        5. numbers finite and below LARGEST_PLAUSIBLE; counts and variances not negative, no more steps than asked for,
           and q that of these steps: `not-finite`, `too-long`, `negative`, `steps`
        Later, once the round's other uploads are known, the norms (norm_bounds.py): `too-long`, or clipped. They are
        those of an update divided by its steps, if it is normalised and steps are unequal.
        """
        numbers = read_numbers(reply)
        if not isinstance(reply, Message):
            raise RefusedError("garbage", "it is not a message")
        loss = check_metrics(numbers, client, registered, job, tells_loss=self.tells_loss)
        records = reply.content.array_records
        if set(records) != {ARRAYS}:
            raise RefusedError("records", f"its array records are {', '.join(sorted(records)) or 'none'}")
        tensors = read_arrays(dict(records[ARRAYS]), self._specs)
        up, _ = self.decode(tensors)
        steps = self.max_steps(samples)
        statistics = zero_unchanged_constants(tensors["statistics"], self._first_statistics)
        nonnegative = self.uploads.algorithm.nonnegative
        check_numbers(up, self.layout.views(statistics), nonnegative=nonnegative, steps=steps)
        t = self._counts.get(self._round if job is None else job.version)
        known = () if t is None else check_q(up, t, self.uploads.algorithm.carried)
        if self.training.normalize and self.training.epochs:
            assert steps is not None  # see check_normalize
            up = scale_changes(up, 1 / steps)  # so that none counts for more by saying that it has few samples
        norms = measure_norms(up, statistics, known=known if steps is None else {*known, "k"})
        size = nbytes(tensors.values())
        told = 0 if getattr(up, "k", None) is None else round(float(up.k.flatten()[0]))
        fresh = bool(numbers.get("fresh"))
        return CheckedUpload(client, norms, loss, registered or 1, steps or told, size, fresh), tensors

    def decode(self, tensors: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        """Return the algorithm's Up and the payload that it is decoded from; raises RefusedError if decoding fails."""
        payload = {name.removeprefix("up."): t for name, t in tensors.items() if name.startswith("up.")}
        try:
            return self.uploads.decode(payload, self.up), payload
        except InputError as error:
            raise RefusedError("not-finite" if "not finite" in str(error) else "garbage", str(error)) from None

    def max_steps(self, samples: int | None) -> int | None:
        """Return the maximum of local steps per round for a client with this many samples; None if not known.

        A node takes fewer, one an epoch, only if BatchNorm has a last batch of one sample merged into another.
        """
        return self.training.steps or (self.training.steps_per_round(samples) if samples else None)


def check_metrics(
    numbers: Mapping[str, object],
    client: int,
    registered: int | None,
    job: JobName | None = None,
    *,
    tells_loss: bool = True,
) -> float:
    """Return the mean loss; raises RefusedError if it, the client, its job or its number of samples is implausible.

    client: the one that was asked; its node may have been restarted as another client. registered: the number of
    samples that it registered with; None if nodes do not report it. job: that was asked for, in a buffered run; a node
    may send an answer that it gave before. tells_loss: whether nodes report their loss, which is NaN if not.
    """
    if numbers.get("client") != client:
        raise RefusedError("other-client", f"it is client {numbers.get('client')!r} now")
    told, asked = (numbers.get("version"), numbers.get("repeat")), job or (None, None)
    if told != asked:
        raise RefusedError(
            "other-job", f"its version and repeat are {told[0]!r} and {told[1]!r}, not {asked[0]} and {asked[1]}"
        )
    loss = _check_loss(numbers.get("loss")) if tells_loss else math.nan
    if not tells_loss and "loss" in numbers:
        raise RefusedError("records", "it tells its loss, which is not accounted for")
    samples = numbers.get("num-examples")
    if samples != registered:
        raise RefusedError("samples", f"the node reports {samples!r} samples, and registered with {registered!r}")
    return loss


def _check_loss(loss: object) -> float:
    if not isinstance(loss, float) or not abs(loss) < torch.finfo(torch.float32).max:
        raise RefusedError("not-finite", f"the loss is {loss!r}")
    if abs(loss) > MAX_LOSS:
        raise RefusedError("too-long", f"the loss is {loss:.3g}")
    return loss


def check_numbers(up: Any, statistics: Mapping[str, Tensor], *, nonnegative: Sequence[str], steps: int | None) -> None:
    """Raise RefusedError if an upload has a number that no honest client sends.

    statistics: BatchNorm's, by name. nonnegative: fields that are never below 0. steps: the maximum of local steps, if
    known; field `k` counts them.
    """
    for name, t in {**up._asdict(), **statistics}.items():
        if t.numel():
            _check_range(name, t, nonnegative=name in nonnegative or name.endswith("running_var"))
    k = getattr(up, "k", None)
    if k is not None and not bool(((k >= 1) & (k <= (steps or LARGEST_PLAUSIBLE))).all()):
        asked = "at least 1 was" if steps is None else f"{steps} were"
        raise RefusedError("steps", f"it reports {float(k.flatten()[0]):g} steps, {asked} asked for")


def check_q(up: Any, t: Tensor, carried: Sequence[float]) -> Sequence[str]:
    """Raise RefusedError unless q is that of the steps reported; return the fields checked.

    t: (1,) or (c,) gradients that moments counted for in what the client was sent. carried: their decay rates (c).
    """
    expected = find_q(t.to(up.k) + up.k, carried)
    if not torch.allclose(up.q, expected, rtol=Q_DIFFERS, atol=SMALLEST):
        raise RefusedError("steps", f"its q is {up.q.tolist()}, not that of the {float(up.k):g} steps that it reports")
    return (Q,)


def _check_range(name: str, t: Tensor, *, nonnegative: bool) -> None:
    """Raise RefusedError unless all numbers are finite, below LARGEST_PLAUSIBLE and, if `nonnegative`, not below 0."""
    least, most = map(float, torch.aminmax(t))  # NaN if any number is
    if not math.isfinite(least + most):
        raise RefusedError("not-finite", f"{name!r} has numbers that are not finite")
    if max(-least, most) > LARGEST_PLAUSIBLE:
        raise RefusedError("too-long", f"{name!r} has numbers above {LARGEST_PLAUSIBLE:g}")
    if least < 0 and nonnegative:
        raise RefusedError("negative", f"{name!r} has numbers below 0")


def zero_unchanged_constants(statistics: Tensor, first: Tensor) -> Tensor:
    """Return the statistics with huge numbers that never changed set to 0: constants such as a mask."""
    return statistics.masked_fill((statistics.abs() > LARGEST_PLAUSIBLE) & (statistics == first), 0)
