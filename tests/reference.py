"""Every algorithm once more, as a naive loop over numbers written from its paper. Imports nothing of the package."""

import math


def fedadamw(x, rounds, blocks, *, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, alpha=0.5, share="mean-v"):
    """arXiv 2510.27486, Algorithm 2, with decay in place of the printed growth.

    x: list of d numbers. blocks: list of lists of coordinates. rounds: list of (lr, clients), a client being a list
    of gradient functions, one a local step, y -> list of d numbers. Returns the list of x after each round.
    """
    d = len(x)
    x = list(x)
    delta_g = [0.0] * d
    shared_m = [0.0] * d
    shared_v = [0.0] * d
    t = 0.0
    history = []
    for lr, clients in rounds:
        deltas, ms, vs, steps = [], [], [], []
        for gradients in clients:
            y = list(x)
            m = list(shared_m) if share in ("m", "vm") else [0.0] * d
            v = list(shared_v) if share in ("v", "vm", "mean-v") else [0.0] * d
            for k, gradient in enumerate(gradients, start=1):
                g = gradient(y)
                m_age = t + k if share in ("m", "vm") else k
                v_age = t + k if share in ("v", "vm", "mean-v") else k
                for j in range(d):
                    m[j] = beta1 * m[j] + (1 - beta1) * g[j]
                    v[j] = beta2 * v[j] + (1 - beta2) * g[j] * g[j]
                    m_hat = m[j] / (1 - beta1**m_age)
                    v_hat = v[j] / (1 - beta2**v_age)
                    y[j] -= lr * (m_hat / (math.sqrt(v_hat) + eps) + alpha * delta_g[j] + weight_decay * y[j])
            if share == "mean-v":
                for block in blocks:
                    mean = sum(v[j] for j in block) / len(block)
                    for j in block:
                        v[j] = mean
            deltas.append([y[j] - x[j] for j in range(d)])
            ms.append(m)
            vs.append(v)
            steps.append(len(gradients))
        delta, k_mean = _mean(deltas), sum(steps) / len(steps)
        x = [x[j] + delta[j] for j in range(d)]
        delta_g = [-delta[j] / (k_mean * lr) for j in range(d)]
        shared_m, shared_v = _mean(ms), _mean(vs)
        t += k_mean
        history.append(x)
    return history


def local_adamw(x, rounds, blocks, *, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01):
    """AdamW (arXiv 1711.05101, Algorithm 2) on each client, restarted each round; models averaged."""
    history = []
    for lr, clients in rounds:
        models = []
        for gradients in clients:
            y, m, v = list(x), [0.0] * len(x), [0.0] * len(x)
            for k, gradient in enumerate(gradients, start=1):
                g = gradient(y)
                for j in range(len(x)):
                    m[j] = beta1 * m[j] + (1 - beta1) * g[j]
                    v[j] = beta2 * v[j] + (1 - beta2) * g[j] ** 2
                    step = (m[j] / (1 - beta1**k)) / (math.sqrt(v[j] / (1 - beta2**k)) + eps)
                    y[j] = y[j] - lr * (step + weight_decay * y[j])
            models.append(y)
        x = _mean(models)
        history.append(x)
    return history


def fedavg(x, rounds, blocks, *, weight_decay=1e-3):
    """arXiv 1602.05629, Algorithm 1, with weight decay in the client's SGD."""
    history = []
    for lr, clients in rounds:
        models = []
        for gradients in clients:
            y = list(x)
            for gradient in gradients:
                g = gradient(y)
                y = [y[j] - lr * (g[j] + weight_decay * y[j]) for j in range(len(x))]
            models.append(y)
        x = _mean(models)
        history.append(x)
    return history


def _mean(vectors):
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]
