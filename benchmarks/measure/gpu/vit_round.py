"""Part 3: seconds of the paper's ViT-Tiny round, and the share of the chip's peak that it uses."""

import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure.gpu.bench import Bench, seconds_of
from benchmarks.measure.gpu.machine import listed_peak, measured_peak
from benchmarks.measure.gpu.problems import paper_federation, vit
from benchmarks.measure.gpu.record import Found

GOALS = {"bf16": 0.2, "float32": 0.8}  # seconds a round
DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
TIMED = 4  # rounds


def measure(bench: Bench) -> None:
    shape = bench.size({"clients": 10, "steps": 50, "batch": 50}, {"clients": 3, "steps": 2, "batch": 4})
    bench.note(job=shape)
    flops = bench.measure("operations of a sample", count_operations, bench)
    for precision, dtype in DTYPES.items():
        bench.measure(f"peak, {precision}", peaks, bench, dtype)
    work = None if flops is None else flops["step"] * shape["clients"] * shape["steps"] * shape["batch"]
    for precision in DTYPES:
        bench.measure(precision, time_round, bench, precision, shape, work)
    if bench.device.type == "cuda":
        bench.measure("float32 with TF32 products", time_with_tf32, bench, shape, work)


def count_operations(bench: Bench) -> Found:
    """Floating-point operations of one sample: forward, and a whole step (forward and backward)."""
    model, x = vit(torch.device("cpu"), small=bench.small), torch.zeros(1, 3, 32, 32)
    with sdpa_kernel(SDPBackend.MATH):  # whose products are counted on a CPU, too
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            model(x)
        with FlopCounterMode(display=False) as both:
            model(x).logits.sum().backward()
    return {"forward": forward.get_total_flops(), "step": both.get_total_flops()}


def peaks(bench: Bench, dtype: torch.dtype) -> Found:
    """The chip's peak in TFLOP/s: from its data sheet if its name is known, and of a large matrix product."""
    size = bench.size(8192, 64)
    return {"listed": listed_peak(bench.device, dtype), "measured": measured_peak(bench.device, dtype, size)}


def time_round(bench: Bench, precision: str, shape: dict[str, int], work: float | None) -> Found:
    """Seconds of a round, median and fastest, after one that compiles."""
    stack = shape["clients"]
    sim = paper_federation(bench.device, **shape, precision=precision, stack=stack, small=bench.small)
    first = seconds_of(sim.step, bench.device)
    times, losses = [], []
    for _ in range(bench.size(TIMED, 1)):
        times.append(seconds_of(lambda: losses.append(sim.step().train_loss), bench.device))
        if bench.left() < 0:
            break
    found = {"first_s": first, "round_s": statistics.median(times), "fastest_s": min(times), "goal_s": GOALS[precision]}
    found |= {"stack": sim.clients.engine.group, "losses": losses}
    return found | shares(bench, precision, work, found["round_s"])


def shares(bench: Bench, precision: str, work: float | None, seconds: float) -> Found:
    """TFLOP of a round, TFLOP/s, and the shares of both peaks."""
    if work is None:
        return {}
    rate = work / seconds / 1e12
    peak = bench.record.parts[bench.part]["measured"].get(f"peak, {precision}", {})
    return {
        "tflop": work / 1e12,
        "tflop_s": rate,
        **{f"of_{kind}_peak": round(rate / peak[kind], 4) for kind in ("listed", "measured") if peak.get(kind)},
    }


def time_with_tf32(bench: Bench, shape: dict[str, int], work: float | None) -> Found:
    """What rounding the factors of products to TF32 would give; the package does not do it."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        return time_round(bench, "float32", shape, work)
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
