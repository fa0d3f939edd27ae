"""ViTs that are small enough for dense matrices, on random images."""

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification

from fedadamw.data.image_task import ImageTask
from fedadamw.data.images import Images
from fedadamw.theory.curvature.subject import Subject


def make_subject(*, classes: int, width: int, heads: int, images: int, dtype: torch.dtype, mlp: int = 0) -> Subject:
    """A fresh ViT of one layer on `images` random images of 8 x 8 pixels."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (images, 1, 8, 8), dtype=np.uint8)
    labels = generator.integers(0, classes, images)
    split = Images(pixels, labels, tuple(map(str, range(classes))))
    torch.manual_seed(0)
    model = ViTForImageClassification(
        ViTConfig(
            image_size=8,
            patch_size=4,
            num_channels=1,
            num_labels=classes,
            hidden_size=width,
            intermediate_size=mlp or 2 * width,
            num_hidden_layers=1,
            num_attention_heads=heads,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.3,
        )
    ).to(dtype)
    task = ImageTask(split, split, device=torch.device("cpu"))
    task.mean, task.std = task.mean.to(dtype), task.std.to(dtype)
    return Subject(model.eval(), task, images, batch_size=8)
