"""Measure what fills the memory of a language model's training: logits, layers' activations and padding.

A model of SmolLM2-135M's shape with adapters takes texts of unequal lengths, of which the second half is learned. Each
way must come to the same losses. The peak is of tensors: counted on a CPU, the allocator's on a GPU.

    python -m benchmarks.measure.long_texts [--device cuda] [--layers 30] [--texts 32] [--repeats 5] [--record]
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from benchmarks.common.tensor_peak import Peak
from fedadamw.data.text_tasks import LanguageTask
from fedadamw.data.texts import Texts
from fedadamw.models import output_layer
from fedadamw.models.activation_checkpoints import checkpoint_layers
from fedadamw.models.lora.adapters import add_adapters
from fedadamw.models.output_layer import CHUNK_BYTES, OutputLayer, find_output_layer
from fedadamw.models.text import Form
from fedadamw.runner.manifest import commit, device_name
from fedadamw.settings.lora import LoraSettings

SHAPE: dict[str, Any] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
SHORTEST, LONGEST = 16, 256  # tokens of a text
WAYS = {  # chunks, packing, checkpointing
    "whole logits": (False, False, False),
    "logits in chunks": (True, False, False),
    "and packing": (True, True, False),
    "and checkpointing": (True, True, True),
}
Step = Callable[[], list[float]]
Row = dict[str, float | str]  # ms and peak_mb, or failed


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    texts = draw_texts(args.texts)
    steps = {name: make_step(texts, args.layers, device, *way) for name, way in WAYS.items()}
    rows = measure(steps, args.repeats, device)
    for name, row in rows.items():
        print(f"{name:20} {row}")
    content = {
        "commit": commit(),
        "device": device_name(device),
        "torch": torch.__version__,
        "shape": {**SHAPE, "num_hidden_layers": args.layers},
        "texts": args.texts,
        "tokens": [int(texts.lengths.sum()), int(texts.marks.sum())],  # all, learned
        "logits_mb": round(4e-6 * args.texts * LONGEST * SHAPE["vocab_size"], 1),  # of the padded batch
        "repeats": args.repeats,
        "ways": rows,
    }
    records.write("long-texts", args.device, content, record=args.record)


def draw_texts(count: int) -> Texts:
    """Return texts of lengths from SHORTEST to LONGEST, evenly spread; the second half of each is learned."""
    lengths = np.linspace(SHORTEST, LONGEST, count).astype(np.int64)
    starts = np.concatenate([[0], lengths.cumsum()])
    tokens = np.random.default_rng(0).integers(SHAPE["vocab_size"], size=starts[-1], dtype=np.int32)
    marks = np.concatenate([np.arange(n) >= n // 2 for n in lengths]).astype(np.int8)
    return Texts(tokens, marks, starts, np.zeros(count, np.int64), ("text",))


def make_step(
    texts: Texts,
    layers: int,
    device: torch.device,
    chunks: bool,
    packing: bool,
    checkpointing: bool,
) -> Step:
    """Return a function that computes the gradient of all texts at once, and gives their losses."""
    model, output = build(layers)
    if checkpointing:
        checkpoint_layers(model, "SmolLM2")
    model.to(device).train()
    task = LanguageTask(texts, texts, Form(0, LONGEST, output=output), device=device, packing=packing)
    batch = task.batch(torch.arange(len(texts)), torch.empty(len(texts), 0))

    def step() -> list[float]:
        output_layer.CHUNK_BYTES = CHUNK_BYTES if chunks else 2**60
        model.zero_grad()
        losses = task.losses(model, batch)
        losses.mean().backward()
        return losses.tolist()

    return step


def build(layers: int) -> tuple[nn.Module, OutputLayer]:
    """Return a model with adapters, the same for all ways, and its output layer."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    warnings.simplefilter("ignore", FutureWarning)  # of transformers, about peft
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(num_hidden_layers=layers, **SHAPE))
    ids = torch.arange(8)[None]
    with torch.no_grad():
        output = find_output_layer(model, ids, model(input_ids=ids).logits)
    assert isinstance(output, OutputLayer), output
    return add_adapters(model, LoraSettings(r=8, dropout=0.0, target_modules="all-linear"), "CAUSAL_LM"), output


def measure(steps: dict[str, Step], repeats: int, device: torch.device) -> dict[str, Row]:
    """Return each way's time, the fastest of `repeats` in turns, and peak, or why it failed: memory may be too small.

    Raises AssertionError if losses differ.
    """
    expected, rows = None, dict[str, Row]()
    for name, step in steps.items():
        try:
            losses, peak = find_peak(step, device)
        except (RuntimeError, MemoryError) as error:
            rows[name] = {"failed": str(error).splitlines()[0]}
            continue
        expected = expected or losses
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        rows[name] = {"peak_mb": round(1e-6 * peak, 1)}
    for _ in range(repeats):
        for name, row in rows.items():
            if "failed" not in row:
                start = time.perf_counter()
                steps[name]()  # which reads the losses, so it waits for the device
                ms = round(1e3 * (time.perf_counter() - start), 1)
                row["ms"] = min(ms, float(row.get("ms", ms)))
    return rows


def find_peak(step: Step, device: torch.device) -> tuple[list[float], int]:
    """Return what a step gives, and the bytes of its tensors at their most, above those of the model."""
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        losses = step()
        return losses, torch.cuda.max_memory_allocated(device) - before
    with Peak() as found:
        losses = step()
    return losses, found.bytes


if __name__ == "__main__":
    main()
