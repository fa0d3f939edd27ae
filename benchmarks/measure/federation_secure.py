"""Measure what secure aggregation changes of a run: examples/secure_sum with processes, and the same rounds without it.

python -m benchmarks.measure.federation_secure [--rounds 2] [--record]

SecAgg+ rounds by chance, so two runs differ in their last digits.
"""

import os
import platform
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import flwr
import torch
from torch import Tensor

from benchmarks.common import records
from benchmarks.common.arguments import new_parser
from fedadamw.flower.local.testbed import LocalFederation
from fedadamw.flower.records import pack, unpack_upload
from fedadamw.optim.messages import Broadcast, load
from fedadamw.optim.server import Server
from fedadamw.runner.manifest import commit

APP = records.ROOT / "examples" / "secure_sum"
SECURE_BYTES = 8  # of each number that SecAgg+ sends


def main() -> None:
    parser = new_parser(__doc__, devices=("cpu",))
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    sys.path.insert(0, str(APP))
    from secure import fixed_point, task

    with tempfile.TemporaryDirectory() as folder:
        secure, accuracies = run_example(Path(folder), args.rounds, task.NODES)
    server = Server(task.network())
    start = server.broadcast()
    for number in range(1, args.rounds + 1):
        down = pack(server.broadcast())
        server.update([unpack_upload(task.train(node, down, number), server.blocks) for node in range(task.NODES)])
    model = task.network()
    server.load_into(model)
    upload = {name: array.numpy() for name, array in task.train(0, pack(start), 1).items() if name != "about"}
    content = {
        "device": f"cpu: {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "flwr": flwr.__version__},
        "commit": commit(),
        "nodes": task.NODES,
        "rounds": args.rounds,
        "parameters": start.state.x.numel(),
        "accuracy": {"secure": accuracies[-1], "plain": round(task.accuracy(model), 3)},
        "differences": compare(secure, server.broadcast(), start),
        "upload_bytes": {
            "secure": SECURE_BYTES * (1 + sum(digit.size for digit in fixed_point.encode(upload))),  # and the weight
            "plain": sum(numbers.nbytes for numbers in upload.values()),
        },
    }
    records.write("federation-secure", args.device, content, record=args.record)


def run_example(folder: Path, rounds: int, nodes: int) -> tuple[Broadcast, list[float]]:
    """Run the example on real processes; return its last broadcast and the accuracy after each round."""
    out = folder / "state.safetensors"
    with LocalFederation(folder, nodes) as bed:
        bed.start_superlink()
        for node in range(nodes):
            bed.register(node)
            bed.start_node(node)
        run = bed.submit(APP, {"rounds": rounds, "out": str(out)})
        status, log = bed.wait_for_end(run, 600 * rounds), bed.run_log(run)
    found = [float(share) for share in re.findall(rf"^round \d+: sum of {nodes} nodes, accuracy ([\d.]+)", log, re.M)]
    state = load(out) if out.exists() else None
    if status != "finished:completed" or len(found) < rounds or not isinstance(state, Broadcast):
        raise SystemExit(f"{status}, sums in {len(found)} of {rounds} rounds: {log[-3000:]}")
    return state, found


def compare(secure: Broadcast, plain: Broadcast, start: Broadcast) -> dict[str, Any]:
    """Relative differences: of x to the way it moved, of Delta_G to its norm, of v_bar the largest of a block."""

    def relative(a: Tensor, b: Tensor, scale: Tensor) -> float:
        return float((a - b).norm() / scale.norm())

    ours, theirs = secure.state, plain.state
    return {
        "x": relative(ours.x, theirs.x, theirs.x - start.state.x),
        "delta": relative(ours.delta, theirs.delta, theirs.delta),
        "v": float(((ours.v - theirs.v).abs() / theirs.v.clamp_min(torch.finfo(theirs.v.dtype).tiny)).max()),
        "t": float((ours.t - theirs.t).abs().max()),
    }


if __name__ == "__main__":
    main()
