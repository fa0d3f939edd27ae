"""Part 1: engines, codecs, LoRA, resume and the CPU give the same numbers as the loop on this device."""

import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure.gpu.bench import Bench, WrongError
from benchmarks.measure.gpu.problems import (
    algorithm_of,
    image_task,
    language_task,
    llama,
    made_up_images,
    training_of,
    unequal,
    vit,
    with_adapters,
)
from benchmarks.measure.gpu.record import Found
from fedadamw import checkpoint
from fedadamw.algorithms.registry import BUILT_IN
from fedadamw.engine.codecs import CODECS, make_codec
from fedadamw.engine.simulate import Saved, Simulation
from fedadamw.engine.step import Kind
from fedadamw.models.lora.means import Folding

DOUBLE, SINGLE = torch.float64, torch.float32
LOOSE = {"fedlion": 0.15}  # the sign of a number near 0 turns on its last digit
BOUND_SINGLE = 0.02  # of the whole change of x: Adam divides by roots of numbers near 0
BOUND_DOUBLE = 1e-10
KEY_BIASES = ("k_proj.bias", "key.bias")  # as versions of transformers name them
SIZES = (5, 20, 13, 10)  # samples of the clients: other batches, and other numbers of steps
ROUNDS = 2
LLAMA = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def measure(bench: Bench) -> None:
    device = bench.device
    names = list(BUILT_IN) if not bench.small else ["fedadamw", "scaffold", "fedmuon"]
    for name in names:
        bench.measure(f"{name}, float64: stacked = loop", compare_engines, name, device, DOUBLE)
    bench.measure("fedadamw, float64: CPU = device", compare_devices, device)
    for name in names:
        bench.measure(f"{name}, float32: stacked = loop", compare_engines, name, device, SINGLE)
    for codec in CODECS:
        bench.measure(f"codec {codec}: the CPU's bytes", compare_codec, codec, device)
        bench.measure(f"upload={codec}: stacked = loop", compare_engines, "fedadamw", device, DOUBLE, upload=codec)
    for aggregate in ("factors", "frozen-a", "exact"):
        bench.measure(f"LoRA {aggregate}: stacked = loop", compare_lora, aggregate, device)
    bench.measure("resumed = never stopped", compare_resumed, device)
    bench.measure("bf16 learns as float32", compare_precisions, device)
    if not bench.small:
        bench.measure("compiled step = plain step", compare_compiled, device)


def simulation(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    stack: int = 1,
    step: Kind = "fused",
    saved: Saved | None = None,
    **settings: object,
) -> Simulation:
    """Four unequal clients, all of them in each round, and a small ViT.

    A key's bias is frozen: it changes no attention, so its gradient is rounding alone, which Adam and Lion blow up.
    """
    model = vit(device, dtype, small=True)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(not parameter_name.endswith(KEY_BIASES))
    data = made_up_images(sum(SIZES))
    task = image_task(data, data, device, dtype)
    usual = {"clients_per_round": len(SIZES), "epochs": 1, "batch_size": 8, "clip": 1.0}
    training = training_of(**{**usual, **settings})
    algorithm = algorithm_of(name, model)
    return Simulation.in_process(model, algorithm, task, unequal(SIZES), training, stack=stack, step=step, saved=saved)


def compare(ours: Simulation, theirs: Simulation, *, bound: float, relative: bool = False) -> Found:
    """Run both for ROUNDS; the difference of their models, as largest number and relative to their whole change."""
    before = theirs.state.server.x.double().cpu()
    losses = [[sim.step().train_loss for _ in range(ROUNDS)] for sim in (ours, theirs)]
    a, b = (sim.state.server.x.double().cpu() for sim in (ours, theirs))
    found = differences(a, b, before) | {"loss": losses[1][-1], "losses_differ": abs(losses[0][-1] - losses[1][-1])}
    return judged(found, bound, relative=relative)


def differences(a: Tensor, b: Tensor, before: Tensor) -> Found:
    """How far two models are apart, of which `b` began at `before`."""
    change = float((b - before).norm())
    return {"largest": float((a - b).abs().max()), "of_change": float((a - b).norm()) / max(change, 1e-30)}


def judged(found: Found, bound: float, *, relative: bool) -> Found:
    """`found` with its bound; raises WrongError if it is exceeded."""
    kind = "of_change" if relative else "largest"
    found |= {"bound": bound, "bound_is_on": kind}
    value = found[kind]
    if not (math.isfinite(value) and value <= bound):
        raise WrongError(f"{kind} is {value:.3g}, its bound {bound:g}", found)
    return found


def compare_engines(name: str, device: torch.device, dtype: torch.dtype, **settings: object) -> Found:
    """Stacked by threes against the loop."""
    stacked, loop = (simulation(name, device, dtype, stack=stack, **settings) for stack in (3, 1))
    if dtype == DOUBLE:
        return compare(stacked, loop, bound=BOUND_DOUBLE)
    return compare(stacked, loop, bound=LOOSE.get(name, BOUND_SINGLE), relative=True)


def compare_devices(device: torch.device) -> Found:
    """The same run here and on the CPU, from the same draws."""
    here, there = (simulation("fedadamw", place, DOUBLE) for place in (device, torch.device("cpu")))
    return compare(here, there, bound=1e-9)


def compare_codec(name: str, device: torch.device) -> Found:
    """A codec's tensors, and what they decode to, are the CPU's bit for bit."""
    codec = make_codec(name, 0.05)
    x = torch.randn(100_003, generator=torch.Generator().manual_seed(0))
    encoded, decoded = [], []
    for place in (torch.device("cpu"), device):
        sent = codec.encode(x.to(place), torch.Generator().manual_seed(1))
        codec.check(sent, x.to(place))
        encoded.append([t.cpu() for t in sent])
        decoded.append(codec.decode(sent, x.to(place)).cpu())
    same = all(torch.equal(a, b) for a, b in zip(*encoded, strict=True)) and torch.equal(*decoded)
    found = {"equal": same, "largest": float((decoded[0] - decoded[1]).abs().max())}
    if not same:
        raise WrongError("the device's bytes are not the CPU's", found)
    return found


def compare_lora(aggregate: str, device: torch.device) -> Found:
    """LoRA on a small Llama, stacked by threes against the loop."""
    return compare(*(lora_simulation(aggregate, device, stack) for stack in (3, 1)), bound=BOUND_DOUBLE)


def lora_simulation(aggregate: str, device: torch.device, stack: int) -> Simulation:
    """Unequal clients that train adapters in float64."""
    torch.manual_seed(0)
    model = with_adapters(llama(LLAMA, torch.device("cpu"), DOUBLE), 4, aggregate).double().to(device)
    task = language_task(LLAMA["vocab_size"], sum(SIZES), 16, device)
    folding = Folding(model) if aggregate == "exact" else None
    algorithm = algorithm_of("local-adamw" if folding else "fedadamw", model)
    training = training_of(clients_per_round=len(SIZES), epochs=1, batch_size=8)
    return Simulation.in_process(model, algorithm, task, unequal(SIZES), training, stack=stack, folding=folding)


def compare_resumed(device: torch.device) -> Found:
    """Three rounds, against one that is saved to a file and two from there; SCAFFOLD, whose clients remember."""
    whole, begun = (simulation("scaffold", device, DOUBLE) for _ in range(2))
    before = whole.state.server.x.double().cpu()
    for _ in range(ROUNDS + 1):
        whole.step()
    begun.step()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.write(Path(folder) / "state", "checkpoint", begun.tensors(), {"round": 1})
        tensors, facts = checkpoint.read(Path(folder) / "state", "checkpoint")
    resumed = simulation("scaffold", device, DOUBLE, saved=Saved(facts["round"], tensors))
    for _ in range(ROUNDS):
        resumed.step()
    a, b = (sim.state.server.x.double().cpu() for sim in (resumed, whole))
    found = differences(a, b, before) | {"equal": torch.equal(a, b)}
    return judged(found, BOUND_DOUBLE, relative=False)


def compare_precisions(device: torch.device) -> Found:
    """The loss after some rounds in bf16 is near that in float32."""
    losses = []
    for precision in ("bf16", "float32"):
        sim = simulation("fedadamw", device, SINGLE, stack=4, precision=precision)
        losses.append([sim.step().train_loss for _ in range(4)][-1])
    found = {"bf16": losses[0], "float32": losses[1]}
    if not abs(losses[0] - losses[1]) <= 0.1 * losses[1]:
        raise WrongError("the losses differ by more than a tenth", found)
    return found


def compare_compiled(device: torch.device) -> Found:
    """Compiled local steps against plain ones, stacked."""
    compiled, plain = (simulation("fedadamw", device, SINGLE, stack=4, step=step) for step in ("compiled", "plain"))
    return compare(compiled, plain, bound=BOUND_SINGLE, relative=True)
