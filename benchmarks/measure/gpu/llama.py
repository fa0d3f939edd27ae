"""Part 6: peak memory of one local step of one client, for Llama shapes of 1B and 8B with LoRA.

Weights are random and made on the device. Beside what torch reports stands what the tensors that are known beforehand
come to: frozen weights, the client's vectors (x, Delta_G, y, g, m, v) and the logits; the rest is activations.
"""

import time
from typing import Any

import torch
from torch import nn

from benchmarks.measure.gpu.bench import Bench, SkippedError, synchronise
from benchmarks.measure.gpu.machine import version_of
from benchmarks.measure.gpu.problems import algorithm_of, language_task, llama, training_of, unequal, with_adapters
from benchmarks.measure.gpu.record import Found
from fedadamw.engine.simulate import Simulation

SHAPES: dict[str, Found] = {
    "1B": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "8B": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}
SMALL = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
RANK, TEXTS, LENGTH = 16, 4, 512
VECTORS = 6  # a client's: x, Delta_G, y, g, m, v


def measure(bench: Bench) -> None:
    job = {"rank": RANK, "texts": bench.size(TEXTS, 2), "tokens": bench.size(LENGTH, 16)}
    bench.note(job=job)
    for name, shape in (SHAPES if not bench.small else {"tiny": SMALL}).items():
        for bits in (16, 4):
            bench.measure(f"{name}, {'bf16' if bits == 16 else '4 bits'}", one_step, bench, shape, job, bits)


def one_step(bench: Bench, shape: Found, job: dict[str, int], bits: int) -> Found:
    """One local step of one client; GB of memory, as allocated and as reserved."""
    if bits == 4 and version_of("bitsandbytes") is None:
        raise SkippedError("4 bits need bitsandbytes, which is not installed")
    begun = time.perf_counter()
    reset_peak(bench.device)
    torch.manual_seed(0)
    model = (llama if bits == 16 else in_four_bits)(shape, bench.device, torch.bfloat16)
    frozen = sum(p.numel() * p.element_size() for p in model.parameters())
    model = with_adapters(model, RANK)
    made = time.perf_counter() - begun
    task = language_task(shape["vocab_size"], job["texts"], job["tokens"], bench.device)
    training = training_of(clients_per_round=1, steps=1, batch_size=job["texts"], precision="bf16")
    algorithm = algorithm_of("fedadamw", model)
    sim = Simulation.in_process(model, algorithm, task, unequal((job["texts"],)), training)
    loaded = allocated(bench.device)
    reset_peak(bench.device)
    loss = sim.step().train_loss
    start = time.perf_counter()
    sim.step()
    synchronise(bench.device)
    d, logits = sim.workspace.layout.d, job["texts"] * job["tokens"] * shape["vocab_size"]
    return {
        "trainable": d,
        "frozen_gb": frozen / 1e9,
        "vectors_gb": 4 * VECTORS * d / 1e9,
        "logits_gb": 2 * logits / 1e9,
        "known_gb": (frozen + 4 * VECTORS * d + 2 * logits) / 1e9,
        "loaded_gb": loaded,
        **peak(bench.device),
        "made_s": made,
        "step_s": time.perf_counter() - start,
        "loss": loss,
    }


def allocated(device: torch.device) -> float | None:
    """GB of the device's memory that tensors have now; None on a CPU."""
    return torch.cuda.memory_allocated(device) / 1e9 if device.type == "cuda" else None


def reset_peak(device: torch.device) -> None:
    """Count the peak from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> Found:
    """GB at the peak: of tensors, and with what torch keeps for later ones; None on a CPU."""
    if device.type != "cuda":
        return {"peak_gb": None, "reserved_gb": None}
    statistics = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return {"peak_gb": statistics[0] / 1e9, "reserved_gb": statistics[1] / 1e9}


def in_four_bits(shape: Found, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A Llama whose linear layers are in NF4, each made on the device and quantised there before the next."""
    import bitsandbytes as bnb
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model: Any = LlamaForCausalLM(LlamaConfig(**shape, use_cache=False))
    for name, module in list(model.named_modules()):
        for child_name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and "lm_head" not in f"{name}.{child_name}":
                layer = bnb.nn.Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=False,
                    compute_dtype=dtype,
                    quant_type="nf4",
                    device="meta",
                )
                drawn = 0.02 * torch.randn(child.out_features, child.in_features, device=device, dtype=dtype)
                layer.weight = bnb.nn.Params4bit(drawn, requires_grad=False, quant_type="nf4").to(device)
                setattr(module, child_name, layer)
    for module in model.modules():  # what is left on no device: embeddings, norms, the head, rotations
        for name, p in list(module._parameters.items()):
            if p is not None and p.is_meta:
                drawn = (
                    torch.ones(p.shape, device=device, dtype=dtype)
                    if p.dim() == 1
                    else 0.02 * torch.randn(p.shape, device=device, dtype=dtype)
                )
                module._parameters[name] = nn.Parameter(drawn)
    model.tie_weights()
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    model.is_loaded_in_4bit = True  # peft looks at it
    return model  # type: ignore[no-any-return]
