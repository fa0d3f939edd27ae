"""Measure time and memory of the mean of 100 clients' updates of ViT-Tiny: the engine's way and two common ones.

The engine adds each flat vector to one running sum when it arrives, so it never holds two of them.

    python -m benchmarks.measure.aggregate [--device cuda] [--record]
"""

import json
import resource
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from benchmarks.common.processes import run_again
from fedadamw.engine.average import Mean
from fedadamw.models.vision import ImageShape, build
from fedadamw.runner.manifest import commit, device_name
from fedadamw.vector import Layout

CLIENTS = 100
Named = dict[str, Tensor]


def average_flat(layout: Layout, deltas: Iterator[Tensor]) -> Tensor:
    """The engine's way: one running sum of flat vectors."""
    mean = Mean()
    for delta in deltas:
        mean.add([delta], 1.0)
    return mean.result()[0]


def average_foreach(layout: Layout, deltas: Iterator[Tensor]) -> Tensor:
    """A running sum of lists of tensors, one per parameter, with torch's batched operations."""
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


def average_stacks(layout: Layout, deltas: Iterator[Tensor]) -> Tensor:
    """Keep all models, then stack and average each parameter: what most scripts do."""
    states: list[Named] = [{k: t.clone() for k, t in layout.views(delta).items()} for delta in deltas]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    return torch.cat([t.reshape(-1) for t in mean.values()])


WAYS: dict[str, Callable[[Layout, Iterator[Tensor]], Tensor]] = {
    "flat, streamed": average_flat,
    "foreach, streamed": average_foreach,
    "state dicts, stacked": average_stacks,
}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--one", choices=WAYS, metavar="NAME", help="measure this way in this process")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        print(json.dumps(measure(args.one, torch.device(args.device))))
        return
    ways = {}
    for name in WAYS:
        ways[name] = run_again(__file__, ["--one", name, "--device", args.device])
        print(f"{name:24} {1e3 * ways[name]['s']:8.0f} ms {ways[name]['extra_mb']:8,} MB more", flush=True)
    if len({round(way["sum"], 3) for way in ways.values()}) != 1:
        raise SystemExit(f"the means differ: {ways}")
    content = {"commit": commit(), "device": device_name(torch.device(args.device)), "clients": CLIENTS, "ways": ways}
    records.write("aggregate", args.device, content, record=args.record)


def measure(name: str, device: torch.device) -> dict[str, float]:
    """Return the seconds (fastest of five), the memory beyond one update and a checksum of the mean."""
    layout = Layout.of(build("vit-tiny", ImageShape(32, 3, 10)).model)
    torch.manual_seed(0)
    base = torch.randn(layout.d, device=device)

    def deltas() -> Iterator[Tensor]:
        """One after the other in the same buffer, as from clients that train in turn."""
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
    checksum = float(mean.double().abs().sum())
    return {"s": round(seconds, 4), "extra_mb": round(peak_mb(device) - before), "sum": checksum}


def peak_mb(device: torch.device) -> float:
    """The peak memory of this process so far, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
