"""FedLADA (arXiv 2308.00522): local adaptive steps, amended by the global direction; the whole v is averaged.

    server keeps x, Delta_G = 0, v = 0 (d numbers)
    client:  y = x;  m = 0;  v = the server's v                                     1
             for k = 1..K, with g the gradient at y:
                 g = g + lambda y                                                   2
                 m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g*g        3
                 y = y - lr (a m / (sqrt(v) + eps) + (1 - a) Delta_G)               4
             send delta = y - x, v, K                                               5
    server:  x = x + mean delta;  Delta_G = - mean delta / (mean K lr);  v = mean v 6

There are no bias corrections: v is carried, and Delta_G makes up for the small m of the first steps. We had no access
to the paper's text: a, the missing corrections, the fresh m and the averaged v are those on which its abstract and two
public implementations agree. One of them also takes the running maximum of v, as in AMSGrad; the code of the published
comparisons does not, and neither does this one.

If gradients have noise of known variance, the server also counts steps, t: the noise's part in v is (1 - beta2^t) phi.
Of unequal K (`unequal_steps`) each client then sends q = beta2^(t + K), and t = ln(mean q)/ln(beta2), as in FedAdamW.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fedadamw.algorithm import Algorithm
from fedadamw.algorithms.counter import count_gradients, find_q, with_q
from fedadamw.directions.adamw import NO_NOISE, Moments, NoiseInMoments, check_above_zero, check_adamw, debias
from fedadamw.validation import check
from fedadamw.vector import Vector


class Server(NamedTuple):
    """State of the server, all of it broadcast."""

    x: Vector  # (d,)
    delta: Vector  # (d,) Delta_G, the last global direction
    v: Vector  # (d,)


class CountedServer(NamedTuple):
    """State of the server, if noise is subtracted from v: its part in v is (1 - beta2^t) phi."""

    x: Vector
    delta: Vector
    v: Vector
    t: Tensor  # (1,) steps so far


class Local(NamedTuple):
    """State of a client during a round."""

    y: Vector  # (..., d)
    moments: Moments  # (..., d) each
    k: Tensor  # (..., 1) steps this round


class Up(NamedTuple):
    """Upload of a client."""

    delta: Vector  # (..., d)
    v: Vector  # (..., d)
    k: Tensor  # (..., 1)


@dataclass(frozen=True, kw_only=True)
class FedLADA(Algorithm[Server | CountedServer, Server | CountedServer, tuple[()], Local, Up]):
    """Adaptive clients with a carried second moment, amended by the global direction."""

    betas: tuple[float, float] = (0.9, 0.999)  # decay rates of m and v (each 0 to below 1)
    eps: float = 1e-8  # added to the denominator (above 0)
    weight_decay: float = 1e-3  # part of the gradient (at least 0)
    a: float = 0.1  # weight of the client's own direction; the global direction has 1 - a (above 0, at most 1)
    noise: NoiseInMoments = NO_NOISE  # known, of gradients: subtracted from v; no setting
    unequal_steps: bool = False  # whether clients take unequal numbers of steps; no setting

    elementwise: ClassVar = True
    tuning: ClassVar = {"lr": (3e-4, 1e-3, 3e-3), "weight_decay": (1e-4, 1e-3, 1e-2), "a": (0.1, 0.3, 0.5)}

    def __post_init__(self) -> None:
        check_adamw(self.betas, self.weight_decay)
        check_above_zero("eps", self.eps)
        check(0 < self.a <= 1, f"a={self.a} must lie in (0, 1]")

    @property
    def carried(self) -> tuple[float, ...]:  # type: ignore[override]  # as the clients' steps say
        """Decay rate of v, if it is counted by its q."""
        return self.betas[1:] if self.unequal_steps and self.noise.variance else ()

    def server_init(self, x: Vector) -> Server | CountedServer:
        zero = torch.zeros_like(x)
        return CountedServer(x, zero, zero, x.new_zeros(1)) if self.noise.variance else Server(x, zero, zero)

    def broadcast(self, server: Server | CountedServer) -> Server | CountedServer:
        return server

    def client_start(self, down: Server | CountedServer, memory: tuple[()]) -> Local:  # line 1
        return Local(down.x, Moments(torch.zeros_like(down.x), down.v), down.x.new_zeros(1))

    def client_step(self, local: Local, down: Server | CountedServer, g: Vector, lr: Tensor) -> Local:
        beta1, beta2 = self.betas
        k = local.k + 1
        g = g + self.weight_decay * local.y  # line 2
        m = torch.lerp(local.moments.m, g, 1 - beta1)  # line 3
        v = torch.lerp(local.moments.v, g * g, 1 - beta2)
        v_hat = self._without_noise(v, down.t + k) if isinstance(down, CountedServer) else v
        u = m / (v_hat.sqrt() + self.eps)
        y = local.y - lr * (self.a * u + (1 - self.a) * down.delta)  # line 4
        return Local(y, Moments(m, v), k)

    def client_finish(self, local: Local, down: Server | CountedServer, lr: Tensor) -> tuple[Up, tuple[()]]:  # line 5
        up = Up(local.y - down.x, local.moments.v, local.k)
        if isinstance(down, CountedServer) and self.carried:
            return with_q(up, find_q(down.t + local.k, self.carried)), ()
        return up, ()

    def server_update(
        self, server: Server | CountedServer, up: Any, lr: Tensor, participation: Tensor
    ) -> Server | CountedServer:  # line 6
        after = Server(server.x + up.delta, -up.delta / (up.k * lr), up.v)
        if not isinstance(server, CountedServer):
            return after
        t = server.t + up.k
        return CountedServer(*after, count_gradients(up.q, t, self.carried) if self.carried else t)

    def _without_noise(self, v: Vector, steps: Tensor) -> Vector:
        weight = debias(self.betas[1], steps)
        return weight * self.noise.subtract_from(v / weight)
