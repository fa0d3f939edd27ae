"""Every algorithm once more, as a naive loop over numbers written from its paper. Imports nothing of the package.

x: list of d numbers. rounds: list of (lr, clients); clients: number of a client -> its gradient functions, one a local
step, y -> list of d numbers. problem: what an algorithm may know of the model and the federation. All return the list
of x after each round. noise: (phi, f), the known variance that it adds to a gradient, and the least share of it in v.
by_q: whether the gradients of carried moments are counted exactly where clients take unequal numbers of steps.
"""

import math
from typing import NamedTuple

from support.literal_algebra import mean_of, newton_schulz, normalised, unit, without
from support.reference_outer import sgd_step


class Problem(NamedTuple):
    blocks: list  # lists of coordinates that share one number of v
    tensors: list  # (coordinates, is it a matrix or flat)
    hidden: list  # hidden layers' matrices, each a list of rows, a row being a list of coordinates
    clients: int  # N


def fedadamw(
    x,
    rounds,
    problem,
    *,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.01,
    alpha=0.5,
    share="mean-v",
    memory=None,
    outer=None,
    align="always",
    noise=None,
    by_q=False,
):
    """arXiv 2510.27486, Algorithm 2, with decay in place of the printed growth.

    memory: v_hat is the mean of the round's g^2 and the debiased carried one, which weighs as `memory` gradients.
    outer: (learning rate, momentum, nesterov) of the server's step in place of adding the mean.
    """
    d = len(x)
    x = list(x)
    outer_momentum = [0.0] * d
    delta_g = [0.0] * d
    m_hat_bar, v_hat_bar = [0.0] * d, [0.0] * d  # carried, debiased
    t_m = t_v = 0.0  # gradients that they count for
    history = []
    for lr, clients in rounds:
        w_m = 1 - beta1**t_m if share in ("m", "vm") else 0.0
        w_v = 1 - beta2**t_v if share in ("v", "vm", "mean-v") else 0.0
        deltas, ms, vs, steps = [], [], [], []
        for gradients in clients.values():
            y, m, v = list(x), [0.0] * d, [0.0] * d  # of this round's gradients alone
            for k, gradient in enumerate(gradients, start=1):
                g, u = gradient(y), [0.0] * d
                for j in range(d):
                    m[j] = beta1 * m[j] + (1 - beta1) * g[j]
                    v[j] = beta2 * v[j] + (1 - beta2) * g[j] * g[j]
                    m_hat = (w_m * beta1**k * m_hat_bar[j] + m[j]) / (w_m * beta1**k + 1 - beta1**k)
                    v_hat = (w_v * beta2**k * v_hat_bar[j] + v[j]) / (w_v * beta2**k + 1 - beta2**k)
                    u[j] = m_hat / (math.sqrt(without(noise, v_hat)) + eps)
                trusted = trust(u, delta_g, alpha, align)
                for j in range(d):
                    y[j] -= lr * (u[j] + alpha * trusted[j] * delta_g[j] + weight_decay * y[j])
            k = len(gradients)
            m = [w_m * beta1**k * m_hat_bar[j] + m[j] for j in range(d)]
            v = [w_v * beta2**k * v_hat_bar[j] + v[j] for j in range(d)]
            if share == "mean-v":
                for block in problem.blocks:
                    mean = sum(v[j] for j in block) / len(block)
                    for j in block:
                        v[j] = mean
            deltas.append([y[j] - x[j] for j in range(d)])
            ms.append(m)
            vs.append(v)
            steps.append(k)
        delta, k_mean = mean_of(deltas), sum(steps) / len(steps)
        if outer is None:
            x = [x[j] + delta[j] for j in range(d)]
        else:
            x, outer_momentum = sgd_step(x, outer_momentum, delta, *outer)
        agreement = sum(n * n for n in delta) / mean_of([[sum(n * n for n in own)] for own in deltas])[0]
        scale = agreement if align == "agreement" else 1.0
        delta_g = [-scale * delta[j] / (k_mean * lr) for j in range(d)]
        t_m, t_v = count(t_m, steps, beta1, by_q), count(t_v, steps, beta2, by_q)
        m_hat_bar = [m / (1 - beta1**t_m) for m in mean_of(ms)]
        v_hat_bar = [v / (1 - beta2**t_v) for v in mean_of(vs)]
        if memory is not None:
            t_m, t_v = min(t_m, memory), min(t_v, memory)
        history.append(x)
    return history


def count(t, steps, beta, by_q):
    """The gradients that the mean of moments of t + K gradients counts for, of clients that took so many `steps` K."""
    if not by_q:
        return t + sum(steps) / len(steps)
    return math.log(sum(beta ** (t + k) for k in steps) / len(steps)) / math.log(beta)


def trust(u, delta_g, alpha, align):
    """The factor of each coordinate of alpha Delta_G in a step."""
    if align == "cautious":  # arXiv 2411.16085
        return [1.0 if a * b > 0 else 0.0 for a, b in zip(u, delta_g, strict=True)]
    along, own = alpha * math.sqrt(sum(n * n for n in delta_g)), math.sqrt(sum(n * n for n in u))
    return [own / along if align == "bounded" and along > own else 1.0] * len(u)


def local_adamw(x, rounds, problem, *, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, noise=None):
    """AdamW (arXiv 1711.05101, Algorithm 2) on each client, restarted each round; models averaged."""
    history = []
    for lr, clients in rounds:
        models = []
        for gradients in clients.values():
            y, m, v = list(x), [0.0] * len(x), [0.0] * len(x)
            for k, gradient in enumerate(gradients, start=1):
                g = gradient(y)
                for j in range(len(x)):
                    m[j] = beta1 * m[j] + (1 - beta1) * g[j]
                    v[j] = beta2 * v[j] + (1 - beta2) * g[j] ** 2
                    step = (m[j] / (1 - beta1**k)) / (math.sqrt(without(noise, v[j] / (1 - beta2**k))) + eps)
                    y[j] = y[j] - lr * (step + weight_decay * y[j])
            models.append(y)
        x = mean_of(models)
        history.append(x)
    return history


def fadamgc(x, rounds, problem, *, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, server_lr=1.0, noise=None):
    """arXiv 2502.02727, with AdamW's step. The server's c is recomputed as the mean over all N clients."""
    d = len(x)
    controls = [[0.0] * d for _ in range(problem.clients)]
    history = []
    for lr, clients in rounds:
        c = mean_of(controls)
        deltas, new = [], {}
        for i, gradients in clients.items():
            y, m, v = list(x), [0.0] * d, [0.0] * d
            found = []
            for k, gradient in enumerate(gradients, start=1):
                g = gradient(y)
                found.append(g)
                for j in range(d):
                    tracked = g[j] - controls[i][j] + c[j]
                    m[j] = beta1 * m[j] + (1 - beta1) * tracked
                    v[j] = beta2 * v[j] + (1 - beta2) * tracked**2
                    step = (m[j] / (1 - beta1**k)) / (math.sqrt(without(noise, v[j] / (1 - beta2**k))) + eps)
                    y[j] -= lr * (step + weight_decay * y[j])
            new[i] = mean_of(found)
            deltas.append([y[j] - x[j] for j in range(d)])
        for i, own in new.items():
            controls[i] = own
        mean = mean_of(deltas)
        x = [x[j] + server_lr * mean[j] for j in range(d)]
        history.append(x)
    return history


def local_adam(x, rounds, problem, *, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, noise=None):
    """Adam (arXiv 1412.6980, Algorithm 1) on each client, the decay in its gradient; models averaged."""
    history = []
    for lr, clients in rounds:
        models = []
        for gradients in clients.values():
            y, m, v = list(x), [0.0] * len(x), [0.0] * len(x)
            for k, gradient in enumerate(gradients, start=1):
                g = gradient(y)
                for j in range(len(x)):
                    decayed = g[j] + weight_decay * y[j]
                    m[j] = beta1 * m[j] + (1 - beta1) * decayed
                    v[j] = beta2 * v[j] + (1 - beta2) * decayed**2
                    y[j] -= lr * (m[j] / (1 - beta1**k)) / (math.sqrt(without(noise, v[j] / (1 - beta2**k))) + eps)
            models.append(y)
        x = mean_of(models)
        history.append(x)
    return history


def fedlada(x, rounds, problem, *, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=1e-3, a=0.1, noise=None, by_q=False):
    """arXiv 2308.00522."""
    d = len(x)
    shared_v, amendment, t = [0.0] * d, [0.0] * d, 0.0
    history = []
    for lr, clients in rounds:
        models, vs, steps = [], [], []
        for gradients in clients.values():
            y, m, v = list(x), [0.0] * d, list(shared_v)
            for k, gradient in enumerate(gradients, start=1):
                g, weight = gradient(y), 1 - beta2 ** (t + k)
                for j in range(d):
                    decayed = g[j] + weight_decay * y[j]
                    m[j] = beta1 * m[j] + (1 - beta1) * decayed
                    v[j] = beta2 * v[j] + (1 - beta2) * decayed**2
                    root = math.sqrt(weight * without(noise, v[j] / weight))
                    y[j] -= lr * (a * m[j] / (root + eps) + (1 - a) * amendment[j])
            models.append(y)
            vs.append(v)
            steps.append(len(gradients))
        new = mean_of(models)
        amendment = [(x[j] - new[j]) / (lr * sum(steps) / len(steps)) for j in range(d)]
        x, shared_v, t = new, mean_of(vs), count(t, steps, beta2, by_q)
        history.append(x)
    return history


def fedlion(x, rounds, problem, *, beta1=0.9, beta2=0.99, weight_decay=0.03, alpha=0.5):
    """Lion (arXiv 2302.06675, Algorithm 2) on each client, with FedAdamW's alignment."""
    d = len(x)
    delta_g = [0.0] * d
    history = []
    for lr, clients in rounds:
        models, steps = [], []
        for gradients in clients.values():
            y, m = list(x), [0.0] * d
            for gradient in gradients:
                g = gradient(y)
                for j in range(d):
                    c = beta1 * m[j] + (1 - beta1) * g[j]
                    sign = (c > 0) - (c < 0)
                    m[j] = beta2 * m[j] + (1 - beta2) * g[j]
                    y[j] -= lr * (sign + alpha * delta_g[j] + weight_decay * y[j])
            models.append(y)
            steps.append(len(gradients))
        new = mean_of(models)
        delta_g = [(x[j] - new[j]) / (lr * sum(steps) / len(steps)) for j in range(d)]
        x = new
        history.append(x)
    return history


def fedlamb(
    x,
    rounds,
    problem,
    *,
    beta1=0.9,
    beta2=0.999,
    eps=1e-6,
    weight_decay=0.01,
    alpha=0.5,
    trust=(0.01, 10.0),
    noise=None,
    by_q=False,
):
    """LAMB (arXiv 1904.00962, Algorithm 2) on each client, with FedAdamW's block means and alignment."""
    d = len(x)
    delta_g, shared_v, t = [0.0] * d, [0.0] * d, 0.0
    history = []
    for lr, clients in rounds:
        models, vs, steps = [], [], []
        for gradients in clients.values():
            y, m, v = list(x), [0.0] * d, list(shared_v)
            for k, gradient in enumerate(gradients, start=1):
                g = gradient(y)
                w = [0.0] * d
                for j in range(d):
                    m[j] = beta1 * m[j] + (1 - beta1) * g[j]
                    v[j] = beta2 * v[j] + (1 - beta2) * g[j] ** 2
                    adam = (m[j] / (1 - beta1**k)) / (math.sqrt(without(noise, v[j] / (1 - beta2 ** (t + k)))) + eps)
                    w[j] = adam + weight_decay * y[j]
                for coordinates, is_matrix in problem.tensors:
                    of_y = math.sqrt(sum(y[j] ** 2 for j in coordinates))
                    of_w = math.sqrt(sum(w[j] ** 2 for j in coordinates))
                    ratio = 1.0
                    if is_matrix and of_y > 0 and of_w > 0:
                        ratio = min(max(of_y / of_w, trust[0]), trust[1])
                    for j in coordinates:
                        y[j] -= lr * (ratio * w[j] + alpha * delta_g[j])
            for block in problem.blocks:
                mean = sum(v[j] for j in block) / len(block)
                for j in block:
                    v[j] = mean
            models.append(y)
            vs.append(v)
            steps.append(len(gradients))
        new = mean_of(models)
        delta_g = [(x[j] - new[j]) / (lr * sum(steps) / len(steps)) for j in range(d)]
        x, shared_v, t = new, mean_of(vs), count(t, steps, beta2, by_q)
        history.append(x)
    return history


def fedmuon(
    x,
    rounds,
    problem,
    *,
    beta1=0.95,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.01,
    alpha=0.5,
    steps=5,
    rank=None,
    noise=None,
):
    """arXiv 2510.27403. Of low ranks only 1 is written here: then a sketch is two vectors."""
    d = len(x)
    assert rank in (None, 1)
    delta_g, shared_m = [0.0] * d, [0.0] * d
    flat = set(range(d)) - {j for rows in problem.hidden for row in rows for j in row}
    bases = [(unit(len(rows)), unit(len(rows[0]))) for rows in problem.hidden]
    history = []
    for lr, clients in rounds:
        models, ms, counts = [], [], []
        for gradients in clients.values():
            y, m, v = list(x), list(shared_m), [0.0] * d
            for k, gradient in enumerate(gradients, start=1):
                g = gradient(y)
                u = [0.0] * d
                for j in range(d):
                    m[j] = beta1 * m[j] + (1 - beta1) * g[j]
                    v[j] = beta2 * v[j] + (1 - beta2) * g[j] ** 2
                for j in flat:
                    u[j] = (m[j] / (1 - beta1**k)) / (math.sqrt(without(noise, v[j] / (1 - beta2**k))) + eps)
                for rows in problem.hidden:
                    directions = newton_schulz([[m[j] for j in row] for row in rows], steps)
                    scale = 0.2 * math.sqrt(max(len(rows), len(rows[0])))
                    for row, values in zip(rows, directions, strict=True):
                        for j, value in zip(row, values, strict=True):
                            u[j] = scale * value
                for j in range(d):
                    y[j] -= lr * ((1 - alpha) * u[j] + alpha * delta_g[j] + weight_decay * y[j])
            models.append(y)
            ms.append([0.0 if j in flat else m[j] for j in range(d)])
            counts.append(len(gradients))
        new = mean_of(models)
        delta_g = [(x[j] - new[j]) / (lr * sum(counts) / len(counts)) for j in range(d)]
        x, shared_m = new, mean_of(ms)
        if rank == 1:
            for number, rows in enumerate(problem.hidden):
                p, q = bases[number]
                mean = [[shared_m[j] for j in row] for row in rows]
                right = [sum(a * b for a, b in zip(row, q, strict=True)) for row in mean]  # M q
                left = [sum(p[i] * mean[i][c] for i in range(len(p))) for c in range(len(q))]  # p^T M
                along = sum(a * b for a, b in zip(p, right, strict=True))
                for i, row in enumerate(rows):
                    for c, j in enumerate(row):
                        shared_m[j] = p[i] * left[c] + (right[i] - p[i] * along) * q[c]
                bases[number] = normalised(right), normalised(left)
        history.append(x)
    return history
