"""Linear algebra on lists of numbers, for the literal twins."""

import math


def newton_schulz(matrix, steps):
    if len(matrix) > len(matrix[0]):
        return transposed(newton_schulz(transposed(matrix), steps))
    norm = math.sqrt(sum(value**2 for row in matrix for value in row)) + 1e-7
    x = [[value / norm for value in row] for row in matrix]
    for _ in range(steps):
        once = product(x, transposed(x))
        twice = product(once, once)
        both = [
            [-4.7750 * a + 2.0315 * b for a, b in zip(one, two, strict=True)]
            for one, two in zip(once, twice, strict=True)
        ]
        x = [
            [3.4445 * a + b for a, b in zip(one, two, strict=True)]
            for one, two in zip(x, product(both, x), strict=True)
        ]
    return x


def product(a, b):
    columns = transposed(b)
    return [[sum(p * q for p, q in zip(row, column, strict=True)) for column in columns] for row in a]


def transposed(matrix):
    return [list(column) for column in zip(*matrix, strict=True)]


def unit(n):
    return [1.0] + [0.0] * (n - 1)


def normalised(vector):
    norm = math.sqrt(sum(value**2 for value in vector))
    return [value / norm for value in vector]


def mean_of(vectors):
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def without(noise, v_hat):
    """A debiased second moment without the noise (phi, f) in it."""
    if noise is None:
        return v_hat
    phi, f = noise
    return max(v_hat - phi, f * phi)
