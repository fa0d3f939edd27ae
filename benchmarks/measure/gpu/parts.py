"""The parts of the benchmark, most important first, each with its share of the time."""

from typing import NamedTuple


class Part(NamedTuple):
    """One part: the module of this folder that has its `measure(bench)`."""

    module: str
    about: str
    share: float  # of the budget
    least: float  # fraction of its share without which it does not begin


PARTS = {
    "correctness": Part("correctness", "engines, codecs, LoRA and resume give the same numbers here", 0.17, 0.2),
    "step": Part("local_step", "one local step of 5.4M parameters against torch's fused AdamW", 0.09, 0.3),
    "round": Part("vit_round", "the paper's ViT-Tiny round: 10 clients x 50 steps x batch 50", 0.12, 0.2),
    "engines": Part("ways", "group sizes, two processes, CUDA graphs and torch.compile of the model", 0.23, 0.2),
    "memory": Part("llama", "peak memory of a step of Llama shapes with LoRA", 0.10, 0.3),
    "trace": Part("trace", "the ten longest kernels of a round, and the host's waits", 0.05, 0.3),
    "cifar": Part("cifar", "300 rounds on CIFAR-10 with an evaluation each", 0.24, 0.2),
}
BUDGET_S = 510.0  # of all parts: below nine minutes with the start of processes
GRACE_S = 20.0  # a part's measurement may end so much later than its share says,
LATE_S = 5.0  # and the last one so much later than the budget
START_S = 120.0  # a process that has not begun a part by then is ended


def limit_of(part: str, budget: float, left: float) -> float:
    """Seconds that a part may take: its share, of what is left at most; the last part has all that is left."""
    if part == list(PARTS)[-1]:
        return min(left, 2 * PARTS[part].share * budget)
    return min(left, PARTS[part].share * budget)
