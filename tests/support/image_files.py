"""Small pictures in files, and small image models in folders: what people bring, made on the spot."""

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

RED, GREEN = (200, 30, 20), (20, 160, 60)
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Image.Image:
    """A picture of random bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels if channels > 1 else pixels[:, :, 0])


def folder(place: Path, **splits: dict[str, list[Image.Image]]) -> str:
    """An image folder: of each split, the pictures of each class."""
    for split, classes in splits.items():
        for name, found in classes.items():
            (place / split / name).mkdir(parents=True)
            for i, picture in enumerate(found):
                picture.save(place / split / name / f"{i}.{'tif' if picture.mode == 'F' else 'png'}")
    return str(place)


def truncated(picture: Image.Image, kind: str = "PNG") -> bytes:
    """The first half of a picture's file."""
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()[: file.tell() // 2]


def vit(place: Path, processor: dict | None = None, *, side: int = 32, channels: int = 3) -> str:
    """A small ViT with large weights in a folder, and what its image processor is told."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"image_size": side, "patch_size": 8, "num_channels": channels}
    config = ViTConfig(**SIZES, **sizes, num_labels=2, initializer_range=0.3)
    ViTForImageClassification(config).save_pretrained(place)
    if processor is not None:
        (place / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(place)


def resnet(place: Path) -> str:
    """A small ResNet with BatchNorm in a folder, as microsoft/resnet-18 has it, with ImageNet's pixels; its path."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    ResNetForImageClassification(ResNetConfig(**sizes, num_labels=2)).save_pretrained(place)
    means = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    processor = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, **means}
    (place / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(place)
