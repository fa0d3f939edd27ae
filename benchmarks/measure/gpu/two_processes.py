"""One of two ranks on one device, under torchrun; rank 0 prints what it measured as JSON."""

import ctypes
import json
import signal
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.measure.gpu.bench import Bench, seconds_of
from benchmarks.measure.gpu.problems import paper_federation
from fedadamw.engine.ranks import TIMEOUT, Ranks

PR_SET_PDEATHSIG = 1  # Linux's sys/prctl.h


def arguments_of(bench: Bench, shape: dict[str, int], precisions: Sequence[str]) -> list[str]:
    """The command line of such a rank."""
    job = {"device": str(bench.device), "small": bench.small, "precisions": precisions, "shape": shape}
    return [json.dumps(job)]


def main() -> None:
    end_with_torchrun()
    job = json.loads(sys.argv[1])
    device = torch.device(job["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("gloo", timeout=TIMEOUT)  # Ranks would choose NCCL for a GPU
    ranks = Ranks(device)
    found = {precision: time_rounds(job, precision, device, ranks) for precision in job["precisions"]}
    if ranks.rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


def end_with_torchrun() -> None:
    """Let this rank be killed with its torchrun, whose ranks are in sessions of their own: the card is free then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def time_rounds(job: dict[str, Any], precision: str, device: torch.device, ranks: Ranks) -> dict[str, float]:
    """Seconds of a round, after a first one; each rank stacks its share of the clients."""
    share, small = -(-job["shape"]["clients"] // ranks.size), job["small"]
    sim = paper_federation(device, **job["shape"], precision=precision, stack=share, small=small, ranks=ranks)
    first = seconds_of(sim.step, device)
    times, losses = [], []
    for _ in range(1 if small else 5):
        times.append(seconds_of(lambda: losses.append(sim.step().train_loss), device))
    return {"round_s": median(times), "first_round_s": first, "stack": share, "loss": losses[-1]}


if __name__ == "__main__":
    main()
