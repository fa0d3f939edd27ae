"""Small sets of images."""

import numpy as np

from fedadamw.data.images import Images


def images(n=40, size=32, channels=3, classes=10, seed=0) -> Images:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (n, channels, size, size), dtype=np.uint8)
    return Images(pixels, np.arange(n) % classes, tuple(map(str, range(classes))))
