"""What docs/scale.md computes with: operations of some models, and what this machine writes and prepares in a second.

Operations are counted by torch on models without weights, for one sample, forward, and forward with backward. A frozen
layer has no gradient of its weights.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fedadamw import checkpoint
from fedadamw.data.image_task import ImageTask
from fedadamw.data.images import Images
from fedadamw.models import vision
from fedadamw.models.lora.adapters import add_adapters
from fedadamw.settings.lora import LoraSettings
from fedadamw.vector import trainable

TOKENS = 512  # of a text
RANK = 16  # of the adapters
LLAMAS = {  # shapes of Llama 3.2 1B and Llama 3.1 8B: width, MLP, layers, heads, key and value heads, tied output
    "LoRA on Llama 1B": (2048, 8192, 16, 32, 8, True),
    "LoRA on Llama 8B": (4096, 14336, 32, 32, 8, False),
}
VOCABULARY = 128_256
CHECKPOINT_MB = 256


def measure() -> dict[str, Any]:
    """The models, and the rates."""
    return {"models": models(), "checkpoint_mb_s": checkpoint_rate(), "batches_images_s": batch_rate()}


def models() -> dict[str, Any]:
    """Parameters and operations of each model."""
    with torch.device("meta"):
        tiny = vision.build("vit-tiny", vision.ImageShape(32, 3, 10)).model
        return {
            "ViT-Tiny, 32 x 32": count(tiny, torch.zeros(1, 3, 32, 32)),
            "ViT-Base, 224 x 224": count(vit_base(), torch.zeros(1, 3, 224, 224)),
            **{
                name: {**count(llama(*shape), torch.zeros(1, TOKENS, dtype=torch.long)), "tokens": TOKENS, "rank": RANK}
                for name, shape in LLAMAS.items()
            },
        }


def vit_base() -> nn.Module:
    """ViT-Base with patches of 16: transformers' default."""
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(num_labels=1000))


def llama(width: int, mlp: int, layers: int, heads: int, kv_heads: int, tied: bool) -> nn.Module:
    """A Llama with adapters on queries and values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=VOCABULARY,
        tie_word_embeddings=tied,
    )
    settings = LoraSettings(r=RANK, target_modules=("q_proj", "v_proj"), dropout=0.0)
    return add_adapters(LlamaForCausalLM(config), settings, "CAUSAL_LM")


def count(model: nn.Module, inputs: torch.Tensor) -> dict[str, int]:
    """Parameters, those that are trained, and the floating-point operations of one sample."""
    operations = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            logits = model(inputs).logits
            if backward:
                logits.sum().backward()
        operations.append(counter.get_total_flops())
    every, trained = (sum(p.numel() for p in of) for of in (model.parameters(), trainable(model).values()))
    return {"parameters": every, "trained": trained, "forward": operations[0], "forward_backward": operations[1]}


def checkpoint_rate() -> float:
    """MB a second of writing a checkpoint on this machine's disk, the fastest of three."""
    tensors = {"server.x": torch.randn(CHECKPOINT_MB * 250_000)}
    best = float("inf")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        for _ in range(3):
            start = time.perf_counter()
            checkpoint.write(Path(folder) / "state", "checkpoint", tensors, {})
            best = min(best, time.perf_counter() - start)
    return round(CHECKPOINT_MB / best, 1)


def batch_rate() -> float:
    """Images of 3 x 32 x 32 a second that one core crops, flips and normalises in batches of 50, the fastest of 20."""
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 3, 32, 32), dtype=np.uint8)
    data = Images(pixels, np.arange(1000) % 10, tuple(map(str, range(10))))
    task = ImageTask(data, data.select(np.arange(1)), device=torch.device("cpu"), crop_padding=4, flip=True)
    generator = torch.Generator().manual_seed(0)
    best = float("inf")
    for _ in range(20):
        samples, drawn = torch.randperm(1000, generator=generator)[:50], task.draw(50, generator)
        start = time.perf_counter()
        task.batch(samples, drawn)
        best = min(best, time.perf_counter() - start)
    return round(50 / best)
