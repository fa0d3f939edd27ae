"""The literal twins of algorithms under an outer step; as those of reference.py."""

import math

from support.literal_algebra import mean_of, newton_schulz, without


def sgd_step(x, momentum, delta, lr, decay, nesterov):
    """SGD's step (as PyTorch documents it) with the gradient - delta: the new x and momentum."""
    momentum = [decay * b - change for b, change in zip(momentum, delta, strict=True)]
    new = []
    for number, b, change in zip(x, momentum, delta, strict=True):
        step = -change + decay * b if nesterov else b
        new.append(number - lr * step)
    return new, momentum


def diloco(
    x,
    rounds,
    problem,
    *,
    beta1=0.9,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.01,
    moments="keep",
    outer_lr=0.7,
    outer_momentum=0.9,
    nesterov=True,
    noise=None,
):
    """arXiv 2311.08105, Algorithm 1: each client has an AdamW of its own, the server Nesterov's momentum."""
    d = len(x)
    kept = {}  # of each client: m, v, t
    b = [0.0] * d
    history = []
    for lr, clients in rounds:
        deltas = []
        for i, gradients in clients.items():
            m, v, t = kept.get(i, ([0.0] * d, [0.0] * d, 0))
            if moments == "reset":
                m, v, t = [0.0] * d, [0.0] * d, 0
            y = list(x)
            for gradient in gradients:
                g = gradient(y)
                t += 1
                m = [beta1 * m[j] + (1 - beta1) * g[j] for j in range(d)]
                v = [beta2 * v[j] + (1 - beta2) * g[j] ** 2 for j in range(d)]
                for j in range(d):
                    adam = (m[j] / (1 - beta1**t)) / (math.sqrt(without(noise, v[j] / (1 - beta2**t))) + eps)
                    y[j] -= lr * (adam + weight_decay * y[j])
            kept[i] = m, v, t
            deltas.append([y[j] - x[j] for j in range(d)])
        x, b = sgd_step(x, b, mean_of(deltas), outer_lr, outer_momentum, nesterov)
        history.append(x)
    return history


def muloco(
    x,
    rounds,
    problem,
    *,
    beta1=0.95,
    beta2=0.999,
    eps=1e-8,
    weight_decay=0.01,
    steps=5,
    outer_lr=0.7,
    outer_momentum=0.9,
    nesterov=True,
    noise=None,
):
    """arXiv 2505.23725: `diloco`, but hidden matrices step along their momentum, orthogonalized."""
    d = len(x)
    flat = set(range(d)) - {j for rows in problem.hidden for row in rows for j in row}
    kept = {}
    b = [0.0] * d
    history = []
    for lr, clients in rounds:
        deltas = []
        for i, gradients in clients.items():
            m, v, t = kept.get(i, ([0.0] * d, [0.0] * d, 0))
            y = list(x)
            for gradient in gradients:
                g = gradient(y)
                t += 1
                m = [beta1 * m[j] + (1 - beta1) * g[j] for j in range(d)]
                v = [beta2 * v[j] + (1 - beta2) * g[j] ** 2 for j in range(d)]
                u = [0.0] * d
                for j in flat:
                    u[j] = (m[j] / (1 - beta1**t)) / (math.sqrt(without(noise, v[j] / (1 - beta2**t))) + eps)
                for rows in problem.hidden:
                    directions = newton_schulz([[m[j] for j in row] for row in rows], steps)
                    scale = 0.2 * math.sqrt(max(len(rows), len(rows[0])))
                    for row, values in zip(rows, directions, strict=True):
                        for j, value in zip(row, values, strict=True):
                            u[j] = scale * value
                for j in range(d):
                    y[j] -= lr * (u[j] + weight_decay * y[j])
            kept[i] = m, v, t
            deltas.append([y[j] - x[j] for j in range(d)])
        x, b = sgd_step(x, b, mean_of(deltas), outer_lr, outer_momentum, nesterov)
        history.append(x)
    return history
