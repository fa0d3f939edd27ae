"""Part 2: one local step of ViT-Tiny's 5.4M parameters, against torch's fused AdamW.

The steps are those of benchmarks/measure/step.py. Each is timed alone, which on a GPU includes starting its kernels,
and twenty at a time, which is the kernels' own time.
"""

import torch

from benchmarks.measure import step
from benchmarks.measure.gpu.bench import Bench
from benchmarks.measure.gpu.problems import vit
from benchmarks.measure.gpu.record import Found
from fedadamw.vector import Layout, trainable

AT_ONCE = 20


def measure(bench: Bench) -> None:
    model = vit(bench.device, small=bench.small)
    torch.manual_seed(0)
    gradients = {name: torch.randn_like(p) for name, p in trainable(model).items()}
    bench.note(d=Layout.of(model).d)
    bench.measure("same weights as AdamW", same_work, bench, model, gradients)
    made = {}
    for name, make in step.makers(model, gradients, bench.device).items():
        if "compiled" in name and bench.small:
            continue
        found = bench.measure(f"first call: {name}", first_call, make, made, name)
        if found is None:
            made.pop(name, None)
    bench.measure("alone", time_steps, bench, made, 1)
    bench.measure(f"{AT_ONCE} at a time", time_steps, bench, made, AT_ONCE)


def same_work(bench: Bench, model: torch.nn.Module, gradients: dict[str, torch.Tensor]) -> Found:
    """Ten steps reach AdamW's weights."""
    step.check_same_work(model, gradients, kinds=("fused", "plain") if bench.small else step.KINDS)
    return {"equal": True}


def first_call(make: step.Maker, made: dict[str, step.Stepper], name: str) -> Found:
    """Make a step and take it once, which compiles it."""
    made[name] = make()
    made[name]()
    return {}


def time_steps(bench: Bench, made: dict[str, step.Stepper], count: int) -> Found:
    """Milliseconds of each step, in turns, `count` of them for each look at the clock."""

    def several(one: step.Stepper) -> step.Stepper:
        def run() -> None:
            for _ in range(count):
                one()

        return run

    times = step.time_in_turns({name: several(s) for name, s in made.items()}, bench.size(40, 2), bench.device)
    fused = times["torch AdamW, fused"]
    return {"steps": {n: {"ms": 1e3 * t / count, "of_fused": round(t / fused, 3)} for n, t in times.items()}}
