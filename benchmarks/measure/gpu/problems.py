"""The small and large problems that the parts share: models, made-up images and texts, simulations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.measure.gpu.record import Found
from fedadamw.algorithm import AnyAlgorithm
from fedadamw.algorithms import registry
from fedadamw.blocks.blocks import Blocks
from fedadamw.data.image_task import ImageTask
from fedadamw.data.images import Images
from fedadamw.data.text_tasks import LanguageTask
from fedadamw.data.texts import Texts
from fedadamw.engine.simulate import Simulation
from fedadamw.models import vision
from fedadamw.models.loading import build_seeded
from fedadamw.models.lora.adapters import add_adapters
from fedadamw.models.text import Form
from fedadamw.settings.lora import LoraSettings
from fedadamw.settings.training import TrainingSettings

ROUNDS = 1_000_000  # of a simulation that is stepped by hand: its learning rate hardly moves, and no round evaluates
CLASSES = 10
LLAMA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj")


def vit(device: torch.device, dtype: torch.dtype = torch.float32, *, small: bool = False) -> nn.Module:
    """ViT-Tiny for images of 32 x 32, the same numbers on every device. small: one layer of a ViT that a CPU trains."""
    name, depth = ("vit-nano", 1) if small else ("vit-tiny", None)
    built = build_seeded(lambda: vision.build(name, vision.ImageShape(32, 3, CLASSES), depth=depth), 0)
    return built.model.to(dtype).to(device)


def made_up_images(count: int, seed: int = 0) -> Images:
    """Noise with a class's own colour, so that something can be learned."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    colours = np.random.default_rng(1).integers(0, 128, (CLASSES, 3, 1, 1))
    noise = generator.integers(0, 128, (count, 3, 32, 32))
    return Images((noise + colours[labels]).astype(np.uint8), labels, tuple(map(str, range(CLASSES))))


def image_task(data: Images, held_out: Images, device: torch.device, dtype: torch.dtype = torch.float32) -> ImageTask:
    """Crops and flips, as the recipes have them; inputs of the model's type, in which they are also normalised."""

    def inputs(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return (pixels.to(dtype) / 255 - mean.to(dtype)) / std.to(dtype)  # a GPU multiplies by 1/255: other last digits

    return ImageTask(
        data,
        held_out,
        device=device,
        crop_padding=4,
        flip=True,
        inputs=inputs,
    )


def algorithm_of(name: str, model: nn.Module, **settings: Any) -> AnyAlgorithm:
    """A registered algorithm with its defaults."""
    return registry.make(name, settings, Blocks.of(model))


def training_of(**changes: Any) -> TrainingSettings:
    """Settings of a simulation that is stepped by hand."""
    usual = {"rounds": ROUNDS, "evaluate_every": ROUNDS, "lr": 1e-3, "clip": 10.0}
    return TrainingSettings(**{**usual, **changes})


def paper_federation(
    device: torch.device, *, clients: int, steps: int, batch: int, precision: str, stack: int, small: bool, **how: Any
) -> Simulation:
    """ViT-Tiny with FedAdamW on equal clients; `stack` of them at once. small: a ViT that a CPU trains at once."""
    model = vit(device, small=small)
    data = made_up_images(clients * (batch if small else 500))
    task = image_task(data, data.select(np.arange(clients)), device)
    partition = np.array_split(np.arange(len(data)), clients)
    training = training_of(clients_per_round=clients, steps=steps, batch_size=batch, precision=precision)
    return Simulation.in_process(
        model,
        algorithm_of("fedadamw", model),
        task,
        partition,
        training,
        stack=stack,
        **how,
    )


def llama(shape: Found, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A Llama of this shape with random weights, made on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(LlamaConfig(**shape, use_cache=False))
    finally:
        torch.set_default_dtype(before)


def with_adapters(model: nn.Module, rank: int, aggregate: str = "factors") -> nn.Module:
    """The model with LoRA on its attention, the rest frozen; no dropout."""
    lora = LoraSettings(r=rank, alpha=2 * rank, dropout=0.0, target_modules=LLAMA_LAYERS, aggregate=aggregate)
    return add_adapters(model, lora, "CAUSAL_LM")


def language_task(vocabulary: int, texts: int, length: int, device: torch.device) -> LanguageTask:
    """Random tokens: `texts` of them, `length` long."""
    tokens = np.random.default_rng(0).integers(1, vocabulary, texts * length).astype(np.int32)
    starts = np.arange(texts + 1) * length
    data = Texts(tokens, np.ones(len(tokens), np.int8), starts, np.zeros(texts, np.int64), ())
    return LanguageTask(data, data, Form(0, length), device=device, test_batch_size=1)


def unequal(sizes: Sequence[int]) -> list[np.ndarray]:
    """Clients with so many samples each."""
    ends = np.cumsum(sizes)
    return [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
