"""Image classification as a task for an engine: bytes, augmented and normalised in batches on the device."""

import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fedadamw.data.images import Images
from fedadamw.task import Batch, Evaluation, Model

PART = 2**24  # pixels
Inputs = Callable[[Tensor, Tensor, Tensor], Tensor]


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Bytes (n, c, h, w) scaled to [0, 1] and normalised a channel."""
    return (pixels.float() / 255 - mean) / std


class ImageTask:
    """Cross-entropy on images: random crop and flip in training, nothing random at test time.

    crop_padding: pixels of zeros around an image, from which a window of its own size is cut; 0 for none.
    inputs: what makes of bytes, mean and std what the model takes; scaled to [0, 1] and normalised by default.
    channels: how many the model takes; grey images are repeated to fit.
    mean, std: a channel's, of scaled pixels; the training set's by default.
    resident: whether the training pixels are put on the device; else batches are taken from where they are.
    """

    def __init__(
        self,
        train: Images,
        test: Images,
        *,
        device: torch.device,
        crop_padding: int = 0,
        flip: bool = False,
        inputs: Inputs = normalise,
        channels: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        test_batch_size: int = 500,
        resident: bool = True,
    ) -> None:
        self.device, self.resident, self.lengths = device, resident, None
        self.pixels = _read_only(train.pixels).to(device) if resident else train.pixels
        self.test_pixels = _read_only(test.pixels).to(device)
        self.labels, self.test_labels = (torch.from_numpy(i.labels).to(device) for i in (train, test))
        self.crop_padding, self.flip = crop_padding, flip
        self.inputs, self.channels = inputs, channels
        if mean is None or std is None:
            own_mean, own_std = channel_statistics(train.pixels)
            mean, std = mean or own_mean, std or own_std
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)
        self.test_batch_size = test_batch_size

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """The corner of each image's window and whether it is flipped, (count, 3)."""
        corners = torch.randint(0, 2 * self.crop_padding + 1, (count, 2), generator=generator)
        flips = torch.randint(0, 2 if self.flip else 1, (count, 1), generator=generator)
        return torch.cat([corners, flips], 1)

    def batch(self, samples: Tensor, drawn: Tensor) -> Batch:
        """Augmented, normalised images (n, c, h, w) and labels (n,)."""
        pixels, labels = self._taken(samples)
        if self.crop_padding or self.flip:
            pixels = _window(pixels, self.crop_padding, *drawn.to(pixels.device).unbind(-1))
        return self._inputs(pixels), labels

    def _taken(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels and labels of these samples, on the device."""
        if isinstance(self.pixels, Tensor):
            return self.pixels[samples], self.labels[samples]
        pixels, labels = torch.from_numpy(self.pixels[samples.numpy()]), self.labels[samples.to(self.device)]
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        return pixels, labels

    def losses(self, model: Model, batch: Batch) -> Tensor:
        """Cross-entropy of each image, (n,)."""
        inputs, labels = batch
        return F.cross_entropy(_logits(model, inputs), labels, reduction="none")

    @property
    def held_out(self) -> int:
        """How many images are held out."""
        return len(self.test_labels)

    def outputs(self, model: Model, start: int, stop: int) -> Tensor:
        """Cross-entropy of each held-out image, and 1 where its class is the likeliest, (stop - start, 2)."""
        found = []
        for first in range(start, stop, self.test_batch_size):
            these = slice(first, min(first + self.test_batch_size, stop))
            labels = self.test_labels[these]
            logits = _logits(model, self._inputs(self.test_pixels[these]))
            right = logits.argmax(-1) == labels
            found.append(torch.stack([F.cross_entropy(logits, labels, reduction="none").double(), right.double()], -1))
        return torch.cat(found)

    def score(self, outputs: Tensor) -> Evaluation:
        """Mean cross-entropy and accuracy."""
        loss, accuracy = outputs.mean(0).tolist()
        return Evaluation(loss, {"accuracy": accuracy})

    def _inputs(self, pixels: Tensor) -> Tensor:
        """Bytes (n, c, h, w) as the model takes them."""
        x = self.inputs(pixels, self.mean, self.std)
        if self.channels and x.shape[1] != self.channels:
            x = x.expand(-1, self.channels, -1, -1)
        return x


def channel_statistics(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, of pixels in [0, 1], from counts of the 256 byte values."""
    levels = np.arange(256) / 255
    means, stds = [], []
    for c in range(pixels.shape[1]):
        counts = sum(np.bincount(part[:, c].ravel(), minlength=256) for part in _parts(pixels))
        share = counts / pixels[:, c].size
        mean = float(share @ levels)
        means.append(mean)
        stds.append(max(float(share @ (levels - mean) ** 2) ** 0.5, 1e-3))
    return tuple(means), tuple(stds)


def _parts(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """The images in parts that memory holds, wherever all of them are."""
    images = max(1, PART // math.prod(pixels.shape[1:]))
    return (pixels[start : start + images] for start in range(0, len(pixels), images))


def _read_only(array: np.ndarray) -> Tensor:
    """The array as a tensor that nobody writes to; it may be mapped from a file that cannot be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, of arrays that are not writable
        return torch.from_numpy(array)


def _window(pixels: Tensor, padding: int, top: Tensor, left: Tensor, flipped: Tensor) -> Tensor:
    """A window of the image's own size from each zero-padded image, mirrored where `flipped`; all three are (n,)."""
    n, _, height, width = pixels.shape
    padded = F.pad(pixels, (padding, padding, padding, padding))
    rows = top[:, None] + torch.arange(height, device=pixels.device)  # (n, height)
    across = torch.arange(width, device=pixels.device)
    columns = left[:, None] + torch.where(flipped[:, None] > 0, width - 1 - across, across)  # (n, width)
    image = torch.arange(n, device=pixels.device).view(n, 1, 1)
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _logits(model: Model, inputs: Tensor) -> Tensor:
    """What the model says: transformers' models wrap it."""
    out = model(inputs)
    return out if isinstance(out, Tensor) else out.logits
