"""The mean of a round with privacy of clients: clipped answers, plus noise, over the nominal number of clients S.

    delta                     u = delta min(1, C / |delta|)                          noise z_d C
    another field f           u = f min(1, C_u / |f|)                                noise 5 z_d C_u
    second moments v          the same of f = sqrt(n v), with n the numbers that each v is the mean of
    square, which is |delta|^2    the same of |delta|, with C in place of C_u
    the bit of a quantile     u = 1/2 if |delta| <= C, else -1/2                     noise 5 z_d / 2
    the counter k             is K for every client: public, and not noised
    sent back                 (sum of u + noise N(0, I)) / S, whoever took part
    second moments            max(u^2 - s^2, floor s^2) / n, with s = 5 z_d C_u / S the noise's part of u

These are one Gaussian mechanism. One client's u moves the sums, each in units of its noise, by at most
sqrt(1/z_d^2 + F/(5 z_d)^2) = 1/z, with F fields besides delta, the bit among them: so z_d = z sqrt(1 + F/25), and a
field costs the update 2% more noise. A client that sends a number that is not finite adds nothing.

What is known of second moments: u^2 - s^2 has no bias as an estimate of (sum of sqrt(n v_i) / S)^2, the square of the
mean root. That is below the mean of n v by the variance of the roots over clients, and varies as (answers / S)^2: a
round without answers leaves the floor. The floor raises blocks whose roots are below the noise: with 0 there, clients
would take steps of up to 1/sqrt(1 - beta2) times the learning rate.

The clip follows a quantile of |delta| as in arXiv 1905.03871: C = C exp(-0.2 (b - quantile)) after a round, with b the
noisy share of updates that were no longer than C.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedadamw.algorithm import AnyAlgorithm, AnyState
from fedadamw.engine.client import Broadcast
from fedadamw.engine.codecs import Plain
from fedadamw.engine.ranks import ALONE, Team
from fedadamw.engine.uploads import Uploads
from fedadamw.randomness import GAUSSIANS, Entropy, Purpose, add_noise

COUNTER = "k"  # the field that counts local steps, see UploadState
SQUARE = "square"  # the field |delta|^2, whose root is clipped as delta
OTHERS = 5.0  # noise multiplier of each other field, and of the bit, in that of delta
RATE = 0.2  # at which the clip follows the quantile


@dataclass(frozen=True)
class ClientPrivacy:
    """What hides each client's part in what a round gives. Lengths are L2 norms."""

    noise_multiplier: float  # z, of all fields together
    clip: float  # C; with `quantile` that of the first round
    moment_clip: float  # C_u, of each other field
    clients: int  # S, nominal
    steps: int  # K
    entropy: Entropy
    floor: float = 0.01  # of second moments, in the noise's
    quantile: float | None = None  # of the updates' lengths, that the clip follows; None: it is fixed

    def first_clips(self, like: Tensor, parts: int) -> Tensor:
        """Return the clips that a run begins with, (parts,) of what trains in turn; (0,) if the clip is fixed."""
        count = 0 if self.quantile is None else parts
        return torch.full((count,), self.clip, dtype=torch.float64, device=like.device)

    def multiplier_of_update(self, others: int) -> float:
        """Return z_d beside so many other fields, the bit among them."""
        return self.noise_multiplier * math.sqrt(1 + others / OTHERS**2)


class Field(NamedTuple):
    """How one field of an upload is summed."""

    clip: float
    noise: float  # standard deviation, in the sum
    numbers: Tensor | None = None  # (fields',) or () of second moments: how many numbers each is the mean of
    constant: float | None = None  # what every client has

    def encode(self, t: Tensor) -> Tensor:
        """Return what is clipped of a client's field."""
        return t if self.numbers is None else self.numbers.sqrt() * t.clamp(min=0).sqrt()  # n v may overflow

    def decode(self, u: Tensor, clients: int, floor: float) -> Tensor:
        """Return the field that the server gets, from the noisy sum over the nominal `clients`."""
        if self.constant is not None:
            return torch.full_like(u, self.constant)
        if self.numbers is None:
            return u
        variance = (self.noise / clients) ** 2
        return (u * u - variance).clamp(min=floor * variance) / self.numbers


class PrivateMean:
    """A round's `Average`, of clients' answers as their server decodes them; weights are 0 or 1.

    up: an upload of the algorithm, for types and shapes. clips: see `ClientPrivacy.first_clips`.
    """

    def __init__(
        self,
        privacy: ClientPrivacy,
        algorithm: AnyAlgorithm,
        up: AnyState,
        round_: int,
        clips: Tensor,
        ranks: Team = ALONE,
    ) -> None:
        self.privacy, self.round, self.ranks, self.up_type = privacy, round_, ranks, type(up)
        self._clips, self._part = clips, round_ % max(len(clips), 1)
        self.clip = float(clips[self._part]) if len(clips) else privacy.clip
        self.z_delta = privacy.multiplier_of_update(count_others(privacy, up))
        self.fields = plan_fields(privacy, algorithm, up, self.clip, self.z_delta)
        self.sums = [torch.zeros_like(t) for t in up]  # of clipped fields, without noise
        self.bits = up.delta.new_zeros((), dtype=torch.float64)  # () their sum

    def add(self, tensors: Iterable[Tensor], weight: float) -> None:
        """Add one client's fields, clipped; tensors after them are not used."""
        if weight == 0:
            return
        assert weight == 1
        for n, (field, total, t) in enumerate(zip(self.fields, self.sums, tensors, strict=False)):
            u = field.encode(t)
            length = torch.linalg.vector_norm(u, dtype=torch.float64)
            total.addcmul_(u, (field.clip / length).clamp(max=1.0).to(u))
            if n == 0:
                self.bits += (length <= field.clip).double() - 0.5

    def sum_over_ranks(self, *counts: int) -> list[int]:
        if self.ranks.size == 1:
            return list(counts)
        numbers = torch.tensor([0.0, *counts], dtype=torch.float64, device=self.bits.device)
        numbers[0] = self.bits
        self.ranks.sum([*self.sums, numbers])
        self.bits, *summed = numbers.unbind()
        return [round(float(n)) for n in summed]

    def result(self) -> list[Tensor]:
        """Each field, with noise; to be called once, since two noisy sums would tell more than one."""
        privacy, device = self.privacy, self.bits.device
        generator = privacy.entropy.torch(Purpose.PRIVATE_NOISE, self.round, device=device)
        means = []
        for field, total in zip(self.fields, self.sums, strict=True):
            noisy = total.clone()
            add_noise(noisy, field.noise, generator)
            means.append(field.decode(noisy / privacy.clients, privacy.clients, privacy.floor))
        return means

    def next_clips(self) -> Tensor:
        """Return the clips after the round; those that it began with, if the clip is fixed."""
        privacy = self.privacy
        if privacy.quantile is None:
            return self._clips
        generator = privacy.entropy.numpy(Purpose.PRIVATE_NOISE, self.round)
        noise = generator.normal(0.0, OTHERS * self.z_delta / 2 / GAUSSIANS**0.5, GAUSSIANS).sum()
        share = (float(self.bits) + float(noise)) / privacy.clients + 0.5
        clips = self._clips.clone()
        clips[self._part] = self.clip * math.exp(-RATE * (share - privacy.quantile))
        return clips


def new_private_mean(
    privacy: ClientPrivacy, algorithm: AnyAlgorithm, broadcast: Broadcast, clips: Tensor, ranks: Team = ALONE
) -> PrivateMean:
    """Return the empty mean of the round of `broadcast`. algorithm: that of the numbers that travel."""
    up = Uploads(algorithm, Plain()).template(broadcast.down)
    return PrivateMean(privacy, algorithm, up, broadcast.round, clips, ranks)


def count_others(privacy: ClientPrivacy, up: AnyState) -> int:
    """Return how many parts are noised besides the update: fields that have numbers, and the bit."""
    sent = [name for name in up._fields[1:] if name != COUNTER and getattr(up, name).numel()]
    return len(sent) + (privacy.quantile is not None)


def plan_fields(
    privacy: ClientPrivacy, algorithm: AnyAlgorithm, up: AnyState, clip: float, z: float
) -> Sequence[Field]:
    """Return how each field of an upload `up` is summed. clip, z: those of the update, which is the first field."""
    fields = [Field(clip, z * clip)]
    for name in up._fields[1:]:
        if name == COUNTER:
            fields.append(Field(math.inf, 0.0, constant=float(privacy.steps)))
            continue
        longest = clip if name == SQUARE else privacy.moment_clip
        numbers = count_numbers(algorithm, getattr(up, name)) if name in algorithm.nonnegative else None
        fields.append(Field(longest, OTHERS * z * longest, numbers))
    return fields


def count_numbers(algorithm: AnyAlgorithm, v: Tensor) -> Tensor:
    """Return how many numbers each second moment of `v` (B,) is the mean of; () 1 if they are of one each."""
    blocks = getattr(algorithm, "blocks", None)
    if blocks is None or v.shape[-1] != blocks.B:
        return v.new_ones(())
    return v.new_tensor(blocks.sizes)
