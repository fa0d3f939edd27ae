"""Buffered rounds once more, as naive loops: who works when, and what FedAdamW's server makes of the answers.

Imports nothing of the package.
"""

import math

import numpy as np


def run_clock(ends, *, clients, buffer, places, max_staleness, versions, seed):
    """Return for each version its jobs in the order in which they end, and the time at its end.

    ends(client, version, repeat, start): when that job ends, and whether it is lost. A job is (number, client, version,
    repeat, start, end, outcome, staleness); outcome: counts, stale or lost.
    """
    now, number, at_work, found = 0.0, 0, [], []
    for version in range(versions):
        jobs, counts, draws, begun = [], 0, 0, []
        while counts < buffer:
            due = [job for job in at_work if job[5] == now]
            if due:
                job = min(due)
                at_work.remove(job)
                tau = version - job[2]
                outcome = "lost" if job[6] else "stale" if tau > max_staleness else "counts"
                counts += outcome == "counts"
                jobs.append((*job[:6], outcome, tau))
                continue
            free = places - len(at_work)
            if free:
                busy = {job[1] for job in at_work}
                for client in draw(seed, version, draws, clients, busy, free):
                    repeat = begun.count(client)
                    at_work.append((number, client, version, repeat, now, *ends(client, version, repeat, now)))
                    begun.append(client)
                    number += 1
                draws += 1
            now = min(job[5] for job in at_work)
        found.append((jobs, now))
    return found


def draw(seed, version, draws, clients, busy, count):
    """The clients that begin: those of a synchronous round at first; later of 64 looked at, if enough are free."""
    key = (seed, 1, version, 0, draws) if draws else (seed, 1, version, 0)
    generator = np.random.default_rng(np.random.SeedSequence(key))
    if draws and count < 64:
        seen = []
        for client in generator.integers(clients, size=64).tolist():
            if client not in seen and client not in busy:
                seen.append(client)
        if len(seen) >= count:
            return sorted(seen[:count])
    rest = [client for client in range(clients) if client not in busy]
    places = generator.choice(len(rest), min(count, len(rest)), replace=False)
    return sorted(rest[place] for place in places)


def fedadamw(x, versions, *, alpha=0.5, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01):
    """FedAdamW with fresh moments; versions: the answers of each, (version, weight, lr, gradient functions).

    Returns x after each version. Stale steps shrink: x moves by the mean over all answers, not over their discounts.
    Delta_G is a direction: by the learning rate and the steps of each answer.
    """
    d = len(x)
    states, history = [(list(x), [0.0] * d)], []
    for now, answers in enumerate(versions):
        total, moved, steps, gone = 0.0, [0.0] * d, 0.0, [0.0] * d
        for version, weight, lr, gradients in answers:
            start, delta_g = states[version]
            s = 1 / math.sqrt(1 + now - version)
            y, m, v = list(start), [0.0] * d, [0.0] * d
            for k, gradient in enumerate(gradients, start=1):
                g = gradient(y)
                for j in range(d):
                    m[j] = beta1 * m[j] + (1 - beta1) * g[j]
                    v[j] = beta2 * v[j] + (1 - beta2) * g[j] * g[j]
                    u = m[j] / (1 - beta1**k) / (math.sqrt(v[j] / (1 - beta2**k)) + eps)
                    y[j] -= lr * (u + alpha * delta_g[j] + weight_decay * y[j])
            total += weight
            steps += weight * s * len(gradients)
            moved = [moved[j] + weight * s * (y[j] - start[j]) for j in range(d)]
            gone = [gone[j] + weight * s * (y[j] - start[j]) / lr for j in range(d)]
        x = states[-1][0]
        states.append(([x[j] + moved[j] / total for j in range(d)], [-gone[j] / steps for j in range(d)]))
        history.append(states[-1][0])
    return history
