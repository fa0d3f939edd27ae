"""All randomness, derived from (seed, purpose, round, client): no generator's state is ever saved.

So a client draws the same batches in every engine, and a resumed run draws the same numbers as an uninterrupted one.
A client that trains a further time from the same broadcast, its `repeat` above 0, has keys of its own.
"""

import os
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
import torch

GAUSSIANS = 4  # that noise for privacy is a sum of
HEAD, WORDS = 24, 624  # bytes before the words of a Mersenne twister's state in torch, and how many these are


class Purpose(IntEnum):
    """Purpose of a generator; each has a separate stream."""

    SAMPLE_CLIENTS = 1
    BATCHES = 2
    AUGMENT = 3
    MODULE = 4  # dropout, stochastic depth: all draws from torch's global generator
    PARTITION = 5
    INITIAL_MODEL = 6
    SPLIT = 7
    GROUPING = 8
    CODEC = 9
    RANKS = 10  # of the clients' adapters
    ANSWERS = 11  # of a language model, drawn at a temperature
    NOISE = 12  # of gradients on a quadratic
    MEASURED = 13  # samples and directions in which a trained model is measured
    HELD_OUT = 14  # each client's own held-out samples
    EVALUATED_CLIENTS = 15
    PRIVATE_BATCHES = 16  # with privacy: which samples are in a batch
    PRIVATE_NOISE = 17
    PRIVATE_CLIENTS = 18  # with privacy of clients: who takes part
    DEVICES = 19  # classes, speeds, links and days of simulated devices
    JOBS = 20  # how long one job takes, and whether it is lost
    ASKED = 21  # under a virtual clock: who is asked when too few of a round's clients answered


def numpy_generator(
    seed: int, purpose: Purpose, round_: int = 0, client: int = 0, repeat: int = 0
) -> np.random.Generator:
    """Return a numpy generator for one purpose."""
    return np.random.default_rng(_seed_sequence(seed, purpose, round_, client, repeat))


def torch_seed(seed: int, purpose: Purpose, round_: int = 0, client: int = 0, repeat: int = 0) -> int:
    """Return a seed for torch for one purpose."""
    words = _seed_sequence(seed, purpose, round_, client, repeat).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def _seed_sequence(seed: int, purpose: Purpose, round_: int, client: int, repeat: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(
        (seed, purpose, round_, client, repeat) if repeat else (seed, purpose, round_, client)
    )


def seed_modules_by(generator: torch.Generator) -> None:
    """Let what modules on the generator's device draw from go on from a new `generator`."""
    if generator.device.type == "cpu":
        torch.default_generator.set_state(generator.get_state())
    else:
        torch.default_generator.manual_seed(generator.initial_seed())
        torch.cuda.set_rng_state(generator.get_state(), generator.device)


def seed_modules(seed: int, device: torch.device) -> None:
    """Seed what modules on `device` draw from, such as dropout: torch's default generators."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)  # torch.manual_seed also asks the GPUs, for a millisecond
    else:
        torch.manual_seed(seed)


def torch_generator(
    seed: int, purpose: Purpose, round_: int = 0, client: int = 0, repeat: int = 0, *, device: torch.device
) -> torch.Generator:
    """Return a torch generator on `device` for one purpose."""
    return torch.Generator(device).manual_seed(torch_seed(seed, purpose, round_, client, repeat))


class Entropy(Protocol):
    """Where private noise and private batches come from."""

    def numpy(self, purpose: Purpose, round_: int = 0, client: int = 0) -> np.random.Generator:
        """Return a numpy generator for one purpose."""

    def torch(self, purpose: Purpose, round_: int = 0, client: int = 0, *, device: torch.device) -> torch.Generator:
        """Return a torch generator on `device` for one purpose."""


@dataclass(frozen=True)
class Seeded:
    """Random numbers that follow from a seed, as the simulator's: whoever knows it can compute the noise."""

    seed: int

    def numpy(self, purpose: Purpose, round_: int = 0, client: int = 0) -> np.random.Generator:
        return numpy_generator(self.seed, purpose, round_, client)

    def torch(self, purpose: Purpose, round_: int = 0, client: int = 0, *, device: torch.device) -> torch.Generator:
        return torch_generator(self.seed, purpose, round_, client, device=device)


class OperatingSystem:
    """Random numbers that nobody can compute again: each generator starts from the operating system's entropy.

    The generators themselves are numpy's and torch's, not cryptographic ones.
    """

    def numpy(self, purpose: Purpose, round_: int = 0, client: int = 0) -> np.random.Generator:
        return np.random.default_rng(int.from_bytes(os.urandom(32), "big"))

    def torch(self, purpose: Purpose, round_: int = 0, client: int = 0, *, device: torch.device) -> torch.Generator:
        generator = torch.Generator(device).manual_seed(int.from_bytes(os.urandom(8), "big") >> 1)
        return _fill_state(generator) if device.type == "cpu" else generator


def _fill_state(generator: torch.Generator) -> torch.Generator:
    """Fill the state of a new generator on a CPU with entropy: of a seed it would use 32 bits only.

    The state is that of a Mersenne twister: a head of 24 bytes, then 624 words of 4 bytes, each in 8 bytes.
    """
    state = generator.get_state()
    words = np.frombuffer(os.urandom(4 * WORDS), np.uint32).astype(np.uint64)
    state[HEAD : HEAD + 8 * WORDS] = torch.from_numpy(words.view(np.uint8).copy())
    generator.set_state(state)
    return generator


def add_noise(total: torch.Tensor, std: float, generator: torch.Generator) -> None:
    """Add noise of standard deviation `std` to each number of `total`, in place.

    It is a sum of several Gaussians, so that the rounding of a single one cannot be read from it.
    """
    if std == 0:
        return
    for _ in range(GAUSSIANS):
        noise = torch.randn(total.shape, generator=generator, dtype=total.dtype, device=total.device)
        total.add_(noise, alpha=std / GAUSSIANS**0.5)


def sample_clients(seed: int, round_: int, clients: int, count: int) -> np.ndarray:
    """Draw `count` of `clients` client numbers, uniformly without replacement, in ascending order."""
    drawn = numpy_generator(seed, Purpose.SAMPLE_CLIENTS, round_).choice(clients, count, replace=False)
    return np.sort(drawn)


def sample_independently(entropy: Entropy, round_: int, clients: int, count: int) -> np.ndarray:
    """Draw each of `clients` client numbers with probability `count` / `clients`, in ascending order; perhaps none."""
    drawn = entropy.numpy(Purpose.PRIVATE_CLIENTS, round_).random(clients)
    return np.flatnonzero(drawn < count / clients)


def sample_evaluated(seed: int, clients: np.ndarray, count: int | None) -> np.ndarray:
    """Draw `count` of these clients (n,) to be evaluated, in ascending order, once for a run; all if None.

    Each client has a number of its own in the draw, so one that joins later takes the place of one other at most.
    """
    if count is None or count >= len(clients):
        return np.sort(clients)
    keys = numpy_generator(seed, Purpose.EVALUATED_CLIENTS).random(int(clients.max()) + 1)[clients]
    return np.sort(clients[np.argsort(keys, kind="stable")[:count]])


def draw_batches(
    samples: np.ndarray, generator: np.random.Generator, *, batch_size: int, steps: int | None, epochs: int | None
) -> list[np.ndarray]:
    """Draw the sample numbers of each of one client's local steps in one round.

    steps: that many full batches, from one shuffled pass after another; a client with fewer samples than a batch uses
    all of them in each step. epochs (without steps): that many passes; the last batch of each may be smaller.
    """
    n = len(samples)
    size = min(batch_size, n)
    if steps is None:
        orders = [samples[generator.permutation(n)] for _ in range(epochs or 1)]
        return [order[i : i + size] for order in orders for i in range(0, n, size)]
    passes = -(-steps * size // n)
    stream = np.concatenate([samples[generator.permutation(n)] for _ in range(passes)])
    return list(stream[: steps * size].reshape(steps, size))


def draw_poisson_batches(
    samples: np.ndarray, generator: np.random.Generator, *, rate: float, steps: int
) -> list[np.ndarray]:
    """Draw the sample numbers of each of one client's local steps: each sample with probability `rate`, independently.

    A batch may be empty.
    """
    return [samples[generator.random(len(samples)) < rate] for _ in range(steps)]
