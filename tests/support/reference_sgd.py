"""The literal twins of algorithms whose clients take SGD's steps; as those of reference.py."""

import math

from support.literal_algebra import mean_of


def fedavg(x, rounds, problem, *, weight_decay=1e-3):
    """arXiv 1602.05629, Algorithm 1, with weight decay in the client's SGD."""
    history = []
    for lr, clients in rounds:
        models = []
        for gradients in clients.values():
            y = list(x)
            for gradient in gradients:
                g = gradient(y)
                y = [y[j] - lr * (g[j] + weight_decay * y[j]) for j in range(len(x))]
            models.append(y)
        x = mean_of(models)
        history.append(x)
    return history


def elsewhere(x, rounds, problem, *, start=0.9):
    """`fedavg` whose clients begin at a part of x."""
    history = []
    for lr, clients in rounds:
        models = []
        for gradients in clients.values():
            y = [start * number for number in x]
            for gradient in gradients:
                g = gradient(y)
                y = [y[j] - lr * (g[j] + 1e-3 * y[j]) for j in range(len(x))]
            models.append(y)
        x = mean_of(models)
        history.append(x)
    return history


def fedprox(x, rounds, problem, *, mu=0.01, weight_decay=1e-3):
    """arXiv 1812.06127: the local loss plus mu/2 |y - x|^2, by SGD."""
    history = []
    for lr, clients in rounds:
        models = []
        for gradients in clients.values():
            y = list(x)
            for gradient in gradients:
                g = gradient(y)
                for j in range(len(x)):
                    y[j] = y[j] - lr * (g[j] + weight_decay * y[j] + mu * (y[j] - x[j]))
            models.append(y)
        x = mean_of(models)
        history.append(x)
    return history


def ditto(x, rounds, problem, *, pull=0.1, weight_decay=1e-3, own=None):
    """arXiv 2012.04221, Algorithm 1, whose steps on the two models alternate. own: filled with each client's model."""
    own = {} if own is None else own
    history = []
    for lr, clients in rounds:
        models = []
        for i, gradients in clients.items():
            y, v = list(x), list(own.get(i, x))
            for k, gradient in enumerate(gradients, start=1):
                if k % 2:
                    g = gradient(y)
                    y = [y[j] - lr * (g[j] + weight_decay * y[j]) for j in range(len(x))]
                else:
                    g = gradient(v)
                    v = [v[j] - lr * (g[j] + pull * (v[j] - x[j]) + weight_decay * v[j]) for j in range(len(x))]
            models.append(y)
            own[i] = v
        x = mean_of(models)
        history.append(x)
    return history


def scaffold(x, rounds, problem, *, server_lr=1.0, weight_decay=1e-3):
    """arXiv 1910.06378, Algorithm 1 with option II. The server's c is recomputed as the mean over all N clients."""
    d = len(x)
    controls = [[0.0] * d for _ in range(problem.clients)]
    history = []
    for lr, clients in rounds:
        c = mean_of(controls)
        deltas = []
        new = {}
        for i, gradients in clients.items():
            y = list(x)
            for gradient in gradients:
                g = gradient(y)
                for j in range(d):
                    y[j] -= lr * (g[j] + weight_decay * y[j] - controls[i][j] + c[j])
            steps = len(gradients)
            new[i] = [controls[i][j] - c[j] + (x[j] - y[j]) / (steps * lr) for j in range(d)]
            deltas.append([y[j] - x[j] for j in range(d)])
        for i, own in new.items():
            controls[i] = own
        mean = mean_of(deltas)
        x = [x[j] + server_lr * mean[j] for j in range(d)]
        history.append(x)
    return history


def fedcm(x, rounds, problem, *, a=0.1, weight_decay=1e-3):
    """arXiv 2106.10874."""
    d = len(x)
    momentum = [0.0] * d
    history = []
    for lr, clients in rounds:
        models, steps = [], []
        for gradients in clients.values():
            y = list(x)
            for gradient in gradients:
                g = gradient(y)
                for j in range(d):
                    y[j] -= lr * (a * g[j] + (1 - a) * momentum[j] + weight_decay * y[j])
            models.append(y)
            steps.append(len(gradients))
        new = mean_of(models)
        momentum = [(x[j] - new[j]) / (lr * sum(steps) / len(steps)) for j in range(d)]
        x = new
        history.append(x)
    return history


def fedadam(x, rounds, problem, *, beta1=0.9, beta2=0.99, tau=1e-3, server_lr=0.01, weight_decay=1e-3):
    """arXiv 2003.00295, Algorithm 2."""
    d = len(x)
    m, v = [0.0] * d, [tau * tau] * d
    history = []
    for lr, clients in rounds:
        deltas = []
        for gradients in clients.values():
            y = list(x)
            for gradient in gradients:
                g = gradient(y)
                y = [y[j] - lr * (g[j] + weight_decay * y[j]) for j in range(d)]
            deltas.append([y[j] - x[j] for j in range(d)])
        pseudo = mean_of(deltas)
        m = [beta1 * m[j] + (1 - beta1) * pseudo[j] for j in range(d)]
        v = [beta2 * v[j] + (1 - beta2) * pseudo[j] ** 2 for j in range(d)]
        x = [x[j] + server_lr * m[j] / (math.sqrt(v[j]) + tau) for j in range(d)]
        history.append(x)
    return history


def fedexp(x, rounds, problem, *, eps=1e-3, weight_decay=1e-3):
    """arXiv 2301.09604, Algorithm 1; the model is the mean of the last two iterates w."""
    d = len(x)
    w = list(x)
    history = []
    for lr, clients in rounds:
        deltas = []
        for gradients in clients.values():
            y = list(w)
            for gradient in gradients:
                g = gradient(y)
                y = [y[j] - lr * (g[j] + weight_decay * y[j]) for j in range(d)]
            deltas.append([y[j] - w[j] for j in range(d)])
        mean = mean_of(deltas)
        squares = sum(sum(number**2 for number in delta) for delta in deltas)
        eta = max(1.0, squares / (2 * len(deltas) * (sum(number**2 for number in mean) + eps)))
        last, w = w, [w[j] + eta * mean[j] for j in range(d)]
        history.append([(last[j] + w[j]) / 2 for j in range(d)])
    return history
