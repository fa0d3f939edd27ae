"""CIFAR-10 in a file of at most 38 MB that needs only numpy and Python to read.

All 10,000 held-out images, so that an evaluation costs what it costs, and the first 1,000 training images of each
class. Lossless: each channel is stored as its difference from the pixel to the left, red and blue also from green, and
all of it is compressed by bzip2 (LZMA saves a tenth and takes minutes).
"""

import bz2
from pathlib import Path

import numpy as np

from fedadamw.data.images import Images

PATH = Path(__file__).parent / "cifar10.bz2"
SHAPE = (3, 32, 32)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PER_CLASS = 1000


def choose(train: Images, test: Images) -> tuple[Images, Images]:
    """The part that is packed."""
    chosen = [np.flatnonzero(train.labels == c)[:PER_CLASS] for c in range(len(train.classes))]
    return train.select(np.sort(np.concatenate(chosen))), test


def write(path: Path, train: Images, test: Images) -> None:
    """Write both splits."""
    pixels = np.concatenate([train.pixels, test.pixels])
    labels = np.concatenate([train.labels, test.labels]).astype(np.uint8)
    head = np.array([len(train), len(test)], np.int64).tobytes()
    path.write_bytes(bz2.compress(head + labels.tobytes() + encode(pixels).tobytes()))


def read(path: Path) -> tuple[Images, Images]:
    """Read what `write` wrote."""
    content = bz2.decompress(path.read_bytes())
    train, test = (int(n) for n in np.frombuffer(content, np.int64, 2))
    labels = np.frombuffer(content, np.uint8, train + test, offset=16).astype(np.int64)
    encoded = np.frombuffer(content, np.uint8, offset=16 + train + test).reshape(-1, *SHAPE)
    pixels = decode(encoded)
    return (
        Images(pixels[:train], labels[:train], CLASSES),
        Images(pixels[train:], labels[train:], CLASSES),
    )


def encode(pixels: np.ndarray) -> np.ndarray:
    """Differences of pixels (n, 3, height, width), modulo 256, of the same shape."""
    left = pixels.copy()
    left[..., 1:] -= pixels[..., :-1]
    out = left.copy()
    out[:, [0, 2]] -= left[:, [1, 1]]
    return out


def decode(encoded: np.ndarray) -> np.ndarray:
    """The pixels that `encode` got."""
    left = encoded.copy()
    left[:, [0, 2]] += encoded[:, [1, 1]]
    return np.cumsum(left, axis=-1, dtype=np.uint8)
