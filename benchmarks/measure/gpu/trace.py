"""Part 7: the ten longest kernels of a round with their share, and where the host waits for the device."""

import warnings
from collections import Counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure.gpu.bench import Bench, SkippedError, synchronise
from benchmarks.measure.gpu.problems import paper_federation
from benchmarks.measure.gpu.record import Found

LONGEST = 10


def measure(bench: Bench) -> None:
    shape = {"clients": bench.size(10, 2), "steps": bench.size(5, 2), "batch": bench.size(50, 3)}
    bench.note(job=shape)
    for precision in ("bf16", "float32"):
        bench.measure(f"kernels, {precision}, stacked", longest_kernels, bench, shape, precision, shape["clients"])
    bench.measure("kernels, bf16, loop", longest_kernels, bench, shape, "bf16", 1)
    for stack in (1, shape["clients"]):
        name = "the loop" if stack == 1 else "stacked clients"
        bench.measure(f"waits of {name}", host_waits, bench, shape, stack)


def longest_kernels(bench: Bench, shape: dict[str, int], precision: str, stack: int) -> Found:
    """The kernels (on a CPU: operators) of a round that take the most time."""
    sim = paper_federation(bench.device, **shape, precision=precision, stack=stack, small=bench.small)
    for _ in range(2):
        sim.step()
    cuda = bench.device.type == "cuda"
    synchronise(bench.device)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        sim.step()
        synchronise(bench.device)
    events = [event for event in seen.key_averages() if not getattr(event, "is_user_annotation", False)]
    rows = [event for event in events if own_time(event, cuda=cuda) > 0]
    if cuda:  # an operator's row repeats the time of its kernels, which have rows of their own
        rows = [event for event in rows if event.device_type == torch.autograd.DeviceType.CUDA] or rows
    total = sum(own_time(event, cuda=cuda) for event in rows)
    rows.sort(key=lambda event: -own_time(event, cuda=cuda))
    longest = [
        {
            "name": event.key[:120],
            "share": round(own_time(event, cuda=cuda) / total, 4),
            "ms": round(own_time(event, cuda=cuda) / 1e3, 3),
            "calls": event.count,
        }
        for event in rows[:LONGEST]
    ]
    return {"total_ms": total / 1e3, "kernels": sum(event.count for event in rows), "longest": longest}


def own_time(event: Any, *, cuda: bool) -> float:
    """Microseconds of an event without its children."""
    return float(event.self_device_time_total if cuda else event.self_cpu_time_total)


def host_waits(bench: Bench, shape: dict[str, int], stack: int) -> Found:
    """Operations of a round at which the host waits for the device, as torch warns of them, by place in the code."""
    if bench.device.type != "cuda":
        raise SkippedError("a CPU's operations have no host that waits for them")
    sim = paper_federation(bench.device, **shape, precision="bf16", stack=stack, small=bench.small)
    for _ in range(2):
        sim.step()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            sim.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    places = Counter(f"{w.filename}:{w.lineno}" for w in seen if "synchroniz" in str(w.message))
    return {"waits": sum(places.values()), "places": dict(places.most_common(20))}
