"""Mean and standard deviation of the pixels of many clients, from sums that add up over them.

The sums are whole numbers, so the result is that of all images together, whoever has them; only a client with far more
of them than the others counts for less, since it may claim any number.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import sqrt
from operator import mul
from statistics import median_low

import numpy as np

from fedadamw.data.image_task import LEAST_STD, count_levels
from fedadamw.data.samples import Array
from fedadamw.validation import check

LARGEST = 255
MOST = 10  # times the median number of pixels that a client counts for, at most
LEVELS = np.arange(LARGEST + 1, dtype=np.int64)


def sum_pixels(pixels: Array) -> Array:
    """Return, for each channel of bytes (n, c, h, w), their number, sum and sum of squares, (c, 3) int64."""
    counts = count_levels(pixels)
    return np.stack([counts.sum(1), counts @ LEVELS, counts @ LEVELS**2], 1)


def check_pixel_sums(sums: Sequence[Sequence[int]], area: int, images: int | None, most: int) -> None:
    """Raise InputError if no images of `area` pixels have these sums, one (number, sum, sum of squares) a channel.

    images: how many they are, if known; most: the largest number there may be.
    """
    for number, total, squares in sums:
        count = number // area
        whole = number == count * area and 0 < count <= most
        check(
            whole and images in (None, count),
            f"{number:,} pixels are not those of {images or f'1 to {most:,}'} images of {area:,}",
        )
        check(0 <= total <= LARGEST * number, f"the pixels' sum is {total:,}: no {number:,} bytes have it")
        fits = total * total <= number * squares and squares <= LARGEST * total
        check(
            fits, f"the sum of the pixels' squares is {squares:,}: no {number:,} bytes with the sum {total:,} have it"
        )
    check(len({number for number, _, _ in sums}) == 1, "its channels have different numbers of pixels")


def pool_pixel_sums(
    clients: Iterable[Sequence[Sequence[int]]],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of scaled pixels, from the clients' sums.

    A client counts for MOST times the median of their numbers of pixels, at most.
    """
    means, stds = [], []
    for channel in zip(*clients, strict=True):
        most = MOST * median_low(number for number, _, _ in channel)
        shares = [min(Fraction(most, sums[0]), Fraction(1)) for sums in channel]
        number, total, squares = (sum(map(mul, shares, column)) for column in zip(*channel, strict=True))
        mean = Fraction(total, LARGEST * number)
        variance = Fraction(squares, LARGEST**2 * number) - mean**2
        means.append(float(mean))
        stds.append(max(sqrt(variance), LEAST_STD))
    return tuple(means), tuple(stds)
