"""Image classification: images become tensors here, augmented and normalised in batches on the device."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fedadamw.data.images import Images
from fedadamw.data.sums import Hits, Pooled
from fedadamw.task import Batch, Evaluation, Model, copy_to
from fedadamw.vector import at_least_single

PIXELS_AT_ONCE = 2**24  # for statistics
LEAST_STD = 1e-3  # of a channel: images of one colour have none
Preprocess = Callable[[Tensor, Tensor, Tensor], Tensor]  # of pixels, mean and std


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Scale bytes (n, c, h, w) to [0, 1] and normalise each channel."""
    return (pixels.float() / 255 - mean) / std


class ImageTask(Pooled):
    """Cross-entropy on images: random crop and flip in training, nothing random at test time.

    crop_padding: zero pixels around an image, from which a window of its own size is cropped; 0 for none.
    inputs: converts bytes to model inputs, given mean and std; by default scaled to [0, 1] and normalised.
    channels: how many the model takes; grey images are repeated.
    mean, std: of each channel of scaled pixels; the training set's by default.
    resident: keep the training pixels on the device; else each batch is copied there.
    """

    kind = Hits()

    def __init__(
        self,
        train: Images,
        test: Images,
        *,
        device: torch.device,
        crop_padding: int = 0,
        flip: bool = False,
        inputs: Preprocess = normalise,
        channels: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        test_batch_size: int = 500,
        resident: bool = True,
    ) -> None:
        self.device, self.resident, self.lengths = device, resident, None
        self.pixels = _to_tensor(train.pixels).to(device) if resident else train.pixels
        self.test_pixels = _to_tensor(test.pixels).to(device)
        self.labels = torch.from_numpy(train.labels).to(device if resident else "cpu")
        self.test_labels = torch.from_numpy(test.labels).to(device)
        self.crop_padding, self.flip = crop_padding, flip
        self.inputs, self.channels = inputs, channels
        if mean is None or std is None:
            train_mean, train_std = channel_statistics(train.pixels)
            mean, std = mean or train_mean, std or train_std
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device).view(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32, device=device).view(-1, 1, 1)
        self.test_batch_size = test_batch_size

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the corner of each image's window and whether it is flipped, (count, 3)."""
        corners = torch.randint(0, 2 * self.crop_padding + 1, (count, 2), generator=generator)
        flips = torch.randint(0, 2 if self.flip else 1, (count, 1), generator=generator)
        return torch.cat([corners, flips], 1)

    def batch(self, samples: Tensor, drawn: Tensor) -> Batch:
        """Return augmented, normalised images (n, c, h, w) and labels (n,)."""
        pixels, labels = self._gather(samples)
        if self.crop_padding or self.flip:
            pixels = _crop_and_flip(pixels, self.crop_padding, *copy_to(drawn, self.device).unbind(-1))
        return self._inputs(pixels), labels

    def _gather(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Return pixels and labels of the samples, on the device."""
        if isinstance(self.pixels, Tensor):
            return self.pixels[samples], self.labels[samples]
        pixels = torch.from_numpy(self.pixels[samples.numpy()])
        return copy_to(pixels, self.device), copy_to(self.labels[samples], self.device)

    def losses(self, model: Model, batch: Batch) -> Tensor:
        """Return the cross-entropy of each image, (n,)."""
        inputs, labels = batch
        return F.cross_entropy(_logits(model, inputs), labels, reduction="none")

    @property
    def held_out(self) -> int:
        """Number of held-out images."""
        return len(self.test_labels)

    def outputs(self, model: Model, start: int, stop: int) -> Tensor:
        """Return the cross-entropy of each held-out image, and 1 if predicted correctly, (stop - start, 2)."""
        parts = (
            slice(first, min(first + self.test_batch_size, stop)) for first in range(start, stop, self.test_batch_size)
        )
        return self._compare(model, ((self.test_pixels[part], self.test_labels[part]) for part in parts))

    def outputs_of(self, model: Model, samples: Tensor) -> Tensor:
        """Return the same of training images, which are not augmented, (n, 2)."""
        at = self.labels.device
        return self._compare(model, (self._gather(part.to(at)) for part in samples.split(self.test_batch_size)))

    def _compare(self, model: Model, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the cross-entropy, and 1 if predicted correctly, of batches of pixels and labels, (n, 2)."""
        results = []
        for pixels, labels in batches:
            logits = _logits(model, self._inputs(pixels))
            correct = logits.argmax(-1) == labels
            losses = F.cross_entropy(logits, labels, reduction="none")
            results.append(torch.stack([losses.double(), correct.double()], -1))
        return torch.cat(results)

    def logits(self, model: Model, start: int, stop: int) -> Tensor:
        """Return the logits of held-out images `start` to `stop`, (stop - start, classes), in batches as `outputs`."""
        starts = range(start, stop, self.test_batch_size)
        batches = (self.test_pixels[first : min(first + self.test_batch_size, stop)] for first in starts)
        return torch.cat([_logits(model, self._inputs(pixels)) for pixels in batches])

    def score(self, outputs: Tensor) -> Evaluation:
        """Return the mean cross-entropy and the accuracy."""
        loss, accuracy = outputs.mean(0).tolist()
        return Evaluation(loss, {"accuracy": accuracy})

    def _inputs(self, pixels: Tensor) -> Tensor:
        """Convert bytes (n, c, h, w) to model inputs."""
        x = self.inputs(pixels, self.mean, self.std)
        if self.channels and x.shape[1] != self.channels:
            x = x.expand(-1, self.channels, -1, -1)
        return x


def channel_statistics(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of pixels in [0, 1], from counts of the 256 byte values."""
    levels = np.arange(256) / 255
    means, stds = [], []
    for counts in count_levels(pixels):
        share = counts / counts.sum()
        mean = float(share @ levels)
        means.append(mean)
        stds.append(max(float(share @ (levels - mean) ** 2) ** 0.5, LEAST_STD))
    return tuple(means), tuple(stds)


def count_levels(pixels: np.ndarray) -> np.ndarray:
    """Return how often each channel of bytes (n, c, h, w) has each of the 256 values, (c, 256) int64."""
    counts = np.zeros((pixels.shape[1], 256), np.int64)
    for part in _iter_groups(pixels):
        for c in range(pixels.shape[1]):
            counts[c] += np.bincount(part[:, c].ravel(), minlength=256)
    return counts


def _iter_groups(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Iterate over groups of images that fit in memory."""
    images = max(1, PIXELS_AT_ONCE // math.prod(pixels.shape[1:]))
    return (pixels[start : start + images] for start in range(0, len(pixels), images))


def _to_tensor(array: np.ndarray) -> Tensor:
    """Return a tensor that shares memory with a possibly read-only array; do not write to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns of read-only arrays
        return torch.from_numpy(array)


def _crop_and_flip(pixels: Tensor, padding: int, top: Tensor, left: Tensor, flipped: Tensor) -> Tensor:
    """Crop a window of the original size from each zero-padded image, mirrored if `flipped`; arguments are (n,)."""
    n, _, height, width = pixels.shape
    padded = F.pad(pixels, (padding, padding, padding, padding))
    rows = top[:, None] + torch.arange(height, device=pixels.device)  # (n, height)
    across = torch.arange(width, device=pixels.device)
    columns = left[:, None] + torch.where(flipped[:, None] > 0, width - 1 - across, across)  # (n, width)
    image = torch.arange(n, device=pixels.device).view(n, 1, 1)
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _logits(model: Model, inputs: Tensor) -> Tensor:
    """Return the logits, which models of transformers wrap."""
    out = model(inputs)
    logits: Tensor = out if isinstance(out, Tensor) else out.logits
    return logits.to(at_least_single(logits))
