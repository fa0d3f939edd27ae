"""Runs an algorithm on the quadratic, all seeds and clients at once: it is elementwise, so leading axes do no harm."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from fedadamw.algorithm import AnyAlgorithm, AnyState
from fedadamw.blocks.blocks import Blocks
from fedadamw.randomness import Purpose, torch_generator
from fedadamw.theory.prediction import Point, Quadratic
from fedadamw.validation import check_one_of
from fedadamw.vector import Vector

Noise = Literal["gauss", "skew"]
NOISES: tuple[Noise, ...] = ("gauss", "skew")
BLOCK_COUNT = 4  # of equal size
CPU = torch.device("cpu")


class Draws(NamedTuple):
    """Random numbers of a run, the same for every algorithm."""

    problem: Quadratic
    noise: Noise
    seeds: int
    generator: torch.Generator

    @staticmethod
    def of(problem: Quadratic, noise: Noise, seeds: int, stream: int) -> "Draws":
        """Return the random numbers of this number; they are drawn once."""
        return Draws(problem, noise, seeds, torch_generator(0, Purpose.NOISE, stream, device=CPU))

    def start(self) -> Vector:
        """Return a first model for each seed, (seeds, d), all as far from the minimum."""
        x = torch.randn(self.seeds, self.problem.d, generator=self.generator)
        length: float = (2 * self.problem.gap / self.problem.smoothness) ** 0.5
        start: Vector = x * (length / torch.linalg.vector_norm(x, dim=-1, keepdim=True))
        return start

    def round(self, point: Point) -> Tensor:
        """Return the noise of a round's gradients, (steps, clients, seeds, d), of mean 0."""
        drawn = torch.empty(point.steps, point.clients, self.seeds, self.problem.d)
        if self.noise == "gauss":
            drawn.normal_(generator=self.generator)
        else:
            drawn.uniform_(generator=self.generator).neg_().log1p_().add_(1).neg_()  # exponential_ takes twice as long
        return drawn.mul_(self.problem.sigma / self.problem.d**0.5)


def parse_noise(text: str) -> Noise:
    """Return the kind of noise that `text` names; raises InputError for an unknown one."""
    check_one_of("--noise", text, NOISES)
    return NOISES[NOISES.index(text)]


def make_blocks(problem: Quadratic) -> Blocks:
    """Return BLOCK_COUNT equal blocks of the d coordinates."""
    module = nn.Module()
    module.x = nn.Parameter(torch.zeros(problem.d))
    return Blocks.of(module, lambda _name, _tensor: BLOCK_COUNT)


def simulate(
    algorithm: AnyAlgorithm, lr: float, point: Point, draws: Draws, after_round: Callable[[], None] = lambda: None
) -> Tensor:
    """Return the mean over the rounds of |grad f|^2 for each seed, (seeds,). Every client takes part in every round."""
    rate, everyone, smoothness = torch.tensor(lr), torch.tensor(1.0), draws.problem.smoothness
    server = algorithm.server_init(draws.start())
    memory = algorithm.client_init(algorithm.broadcast(server))
    total = torch.zeros(draws.seeds, dtype=torch.float64)
    for _ in range(point.rounds):
        total += (smoothness * server.x).double().square().sum(-1)
        up, memory = train_clients(algorithm, server, memory, draws.round(point), rate, smoothness)
        server = algorithm.server_update(server, up, rate, everyone)
        after_round()
    return total / point.rounds


def train_clients(
    algorithm: AnyAlgorithm, server: AnyState, memory: AnyState, noise: Tensor, lr: Tensor, smoothness: float
) -> tuple[AnyState, AnyState]:
    """Return the mean upload and the clients' memories after a round with this noise (steps, clients, seeds, d)."""
    down = algorithm.broadcast(server)
    local = algorithm.client_start(down, memory)
    for drawn in noise:
        local = algorithm.client_step(local, down, drawn.add(local.y, alpha=smoothness), lr)
    up, memory = algorithm.client_finish(local, down, lr)
    # counters and what starts equal have no axis of clients
    return type(up)(*(field.mean(0) if field.dim() == noise.dim() - 1 else field for field in up)), memory
