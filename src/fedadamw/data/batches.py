"""Image classification as a task for an engine: bytes on the device, augmented and normalised there in batches."""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fedadamw.data.sources import Images
from fedadamw.engine.task import Batch, Evaluation


class ImageTask:
    """Cross-entropy on images: random crop and flip in training, nothing random at test time.

    crop_padding: pixels of zeros around an image, from which a window of its own size is cut; 0 for none.
    image_size, channels: what the model takes; images are resized (bilinear) and grey ones repeated to fit.
    mean, std: a channel's, of pixels in [0, 1]; the training set's by default.
    """

    def __init__(
        self,
        train: Images,
        test: Images,
        *,
        device: torch.device,
        crop_padding: int = 0,
        flip: bool = False,
        image_size: int | None = None,
        channels: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        test_batch_size: int = 500,
    ) -> None:
        self.pixels, self.labels = _on(device, train)
        self.test_pixels, self.test_labels = _on(device, test)
        self.crop_padding, self.flip = crop_padding, flip
        self.image_size, self.channels = image_size, channels
        own_mean, own_std = _moments(train.pixels)
        self.mean = torch.tensor(mean or own_mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(std or own_std, device=device).view(-1, 1, 1)
        self.test_batch_size = test_batch_size

    def batch(self, samples: np.ndarray, generator: torch.Generator) -> Batch:
        """Augmented, normalised images (n, c, h, w) and labels (n,)."""
        index = torch.from_numpy(samples).to(self.pixels.device)
        pixels = self.pixels[index]
        if self.crop_padding:
            pixels = _random_crop(pixels, self.crop_padding, generator)
        if self.flip:
            flipped = torch.rand(len(pixels), generator=generator, device=pixels.device) < 0.5
            pixels = torch.where(flipped.view(-1, 1, 1, 1), pixels.flip(-1), pixels)
        return self._inputs(pixels), self.labels[index]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross-entropy, ()."""
        inputs, labels = batch
        return F.cross_entropy(_logits(model, inputs), labels)

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Mean cross-entropy and accuracy on the held-out images."""
        loss = torch.zeros((), device=self.labels.device, dtype=torch.float64)
        right = torch.zeros((), device=self.labels.device, dtype=torch.int64)
        slices = zip(
            self.test_pixels.split(self.test_batch_size),
            self.test_labels.split(self.test_batch_size),
            strict=True,
        )
        for pixels, labels in slices:
            logits = _logits(model, self._inputs(pixels))
            loss += F.cross_entropy(logits, labels, reduction="sum")
            right += (logits.argmax(-1) == labels).sum()
        n = len(self.test_labels)
        return Evaluation(float(loss) / n, int(right) / n)

    def _inputs(self, pixels: Tensor) -> Tensor:
        """Bytes (n, c, h, w) as the model takes them."""
        x = (pixels.float() / 255 - self.mean) / self.std
        if self.image_size and x.shape[-2:] != (self.image_size, self.image_size):
            x = F.interpolate(x, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)
        if self.channels and x.shape[1] != self.channels:
            x = x.expand(-1, self.channels, -1, -1)
        return x


def _on(device: torch.device, images: Images) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images.pixels).to(device), torch.from_numpy(images.labels).to(device)


def _moments(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, of pixels in [0, 1], from counts of the 256 byte values."""
    levels = np.arange(256) / 255
    means, stds = [], []
    for c in range(pixels.shape[1]):
        share = np.bincount(pixels[:, c].ravel(), minlength=256) / pixels[:, c].size
        mean = float(share @ levels)
        means.append(mean)
        stds.append(max(float(share @ (levels - mean) ** 2) ** 0.5, 1e-3))
    return tuple(means), tuple(stds)


def _random_crop(pixels: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """A window of the image's own size from the zero-padded image, another one for each image of the batch."""
    n, _, height, width = pixels.shape
    padded = F.pad(pixels, (padding, padding, padding, padding))
    corner = torch.randint(0, 2 * padding + 1, (2, n, 1), generator=generator, device=pixels.device)
    rows = corner[0] + torch.arange(height, device=pixels.device)  # (n, height)
    columns = corner[1] + torch.arange(width, device=pixels.device)  # (n, width)
    image = torch.arange(n, device=pixels.device).view(n, 1, 1)
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """What the model says: transformers' models wrap it."""
    out = model(inputs)
    logits: Tensor = getattr(out, "logits", out)
    return logits
