"""The mean of 100 clients' updates of ViT-Tiny: as the engine takes it, and as others do.

The engine adds each flat vector to one running sum as it comes, so it never holds two of them.

    python -m benchmarks.measure.aggregate            # writes benchmarks/results/aggregate_<device>_<yyyymm>.json
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.common import records
from fedadamw.engine.round import Mean
from fedadamw.models.vision import ImageShape, build
from fedadamw.runner.manifest import commit, device_name
from fedadamw.vector import Layout

CLIENTS = 100
Named = dict[str, Tensor]


def streamed(layout: Layout, deltas: Iterator[Tensor]) -> Tensor:
    """Ours: one running sum of flat vectors."""
    mean = Mean()
    for delta in deltas:
        mean.add([delta], 1.0)
    return mean.result()[0]


def foreach(layout: Layout, deltas: Iterator[Tensor]) -> Tensor:
    """A running sum of lists of tensors, one a parameter, in torch's batched operations."""
    total: list[Tensor] | None = None
    for delta in deltas:
        tensors = list(layout.views(delta).values())
        if total is None:
            total = [t.clone() for t in tensors]
        else:
            torch._foreach_add_(total, tensors)
    assert total is not None
    torch._foreach_div_(total, CLIENTS)
    return torch.cat([t.reshape(-1) for t in total])


def stacked(layout: Layout, deltas: Iterator[Tensor]) -> Tensor:
    """All models kept, then parameter by parameter a stack and its mean: what most scripts do."""
    states: list[Named] = [{k: t.clone() for k, t in layout.views(delta).items()} for delta in deltas]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    return torch.cat([t.reshape(-1) for t in mean.values()])


WAYS: dict[str, Callable[[Layout, Iterator[Tensor]], Tensor]] = {
    "flat, streamed": streamed,
    "foreach, streamed": foreach,
    "state dicts, stacked": stacked,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", choices=WAYS, help="this way, in this process")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        print(json.dumps(measured(given.one, torch.device(given.device))))
        return
    ways = {}
    for name in WAYS:  # each in a process of its own, for its peak of memory
        command = [sys.executable, "-m", __spec__.name, "--one", name, "--device", given.device]
        ways[name] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"{name:24} {1e3 * ways[name]['s']:8.0f} ms {ways[name]['extra_mb']:8,} MB more", flush=True)
    if len({round(way["sum"], 3) for way in ways.values()}) != 1:
        raise SystemExit(f"the means differ: {ways}")
    record = {"commit": commit(), "device": device_name(torch.device(given.device)), "clients": CLIENTS, "ways": ways}
    records.write("aggregate", given.device, record)


def measured(name: str, device: torch.device) -> dict[str, float]:
    """Seconds, the least of five, the memory that it took beyond one update, and a digest of the mean."""
    layout = Layout.of(build("vit-tiny", ImageShape(32, 3, 10)).model)
    torch.manual_seed(0)
    base = torch.randn(layout.d, device=device)

    def deltas() -> Iterator[Tensor]:
        """One after the other in one buffer, as clients that train in turn leave them."""
        for _ in range(CLIENTS):
            yield base.mul_(-1.01)

    before = peak_mb(device)
    seconds = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        mean = WAYS[name](layout, deltas())
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = min(seconds, time.perf_counter() - start)
    digest = float(mean.double().abs().sum())
    return {"s": round(seconds, 4), "extra_mb": round(peak_mb(device) - before), "sum": digest}


def peak_mb(device: torch.device) -> float:
    """The most memory that was held so far, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
