"""CIFAR-10 as pfl-research's benchmark divides it: clients of 50 images, IID or by Dirichlet(0.1)."""

import numpy as np
import torch

from benchmarks.measure.published_jobs.data import Data
from fedadamw import partition
from fedadamw.data.images import Images, ImageSource, load_images

EACH = 50  # images of a client


def load(source: str, *, concentration: float | None) -> Data:
    """Read CIFAR-10 from a folder or hub id with the splits train and test.

    Pixels are normalised by the training set's mean and deviation of each channel. concentration: of the Dirichlet
    distribution of each client's classes; None: IID.
    """
    train, test = load_images(ImageSource(source))
    mean, std = (
        getattr(train.pixels, of)(axis=(0, 2, 3), keepdims=True, dtype=np.float64).astype(np.float32)
        for of in ("mean", "std")
    )

    def tensors(images: Images) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy((images.pixels - mean) / std), torch.from_numpy(images.labels)

    count = len(train) // EACH
    if concentration is None:
        clients = partition.iid(len(train), clients=count)
    else:
        clients = partition.mix(train.labels, clients=count, concentration=concentration)
    return Data(tensors(train), tensors(test), clients)
