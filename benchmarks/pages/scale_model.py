"""What docs/scale.md computes for 64 GPUs: seconds of the parts of a round, from a record of `measure.scale`."""

from collections.abc import Mapping
from math import ceil, log2
from typing import Any, NamedTuple

Record = Mapping[str, Any]

GPUS = 64
FLOPS, FLOPS_SHARE = 989e12, 0.3  # bfloat16, dense; the share that training reaches is assumed
MEMORY_B_S = 3.35e12
CHECKPOINT_EVERY = 10  # rounds, the default


class Link(NamedTuple):
    """A network between all GPUs, as one ring."""

    bytes_s: float  # of a GPU, in one direction
    latency_s: float  # of a step of the ring, assumed
    source: str


LINKS = {
    "NVLink": Link(450e9, 5e-6, "NVLink 4 in one direction by its data sheet, as if one switch joined all GPUs"),
    "InfiniBand": Link(50e9, 10e-6, "400 Gb/s for each GPU"),
    "Ethernet": Link(12.5e9, 50e-6, "100 Gb/s for each machine of 8 GPUs, which the ring crosses once"),
}
NETWORK = "InfiniBand"  # where one is meant


class Work(NamedTuple):
    """A round's work; assumed."""

    clients: int  # of each GPU
    steps: int
    batch: int
    held_out: int
    pixels: int  # of an image, with its channels; 0 for texts

    @property
    def samples(self) -> int:
        """Samples that a GPU trains on in a round."""
        return self.clients * self.steps * self.batch

    def in_words(self, tokens: int | None) -> str:
        """The work of a GPU."""
        of = f"texts of {tokens} tokens" if tokens else "images"
        return f"{self.clients} clients x {self.steps} steps x {self.batch} {of}; {self.held_out:,} held out"


WORK = {
    "ViT-Tiny, 32 x 32": Work(10, 50, 50, 10_000, 3 * 32 * 32),
    "ViT-Base, 224 x 224": Work(10, 50, 50, 50_000, 3 * 224 * 224),
    "LoRA on Llama 1B": Work(2, 10, 8, 1_000, 0),
    "LoRA on Llama 8B": Work(2, 10, 8, 1_000, 0),
}


def seconds(name: str, record: Record) -> dict[str, float]:
    """Seconds of each part of a round."""
    model, work, costs = record["costs"]["models"][name], WORK[name], record["costs"]
    rate = FLOPS * FLOPS_SHARE
    size, calls = summed(name, record), total(on_two_ranks(record)["round"])[0]
    outputs = work.held_out * evaluation_bytes(record)
    images_s = costs["batches_images_s"] * 3 * 32 * 32 / work.pixels if work.pixels else float("inf")
    return {
        "training": work.samples * model["forward_backward"] / rate,
        **{name: ring(size, calls, link) for name, link in LINKS.items()},
        "server's update": 8 * 4 * model["trained"] / MEMORY_B_S,
        "evaluation": work.held_out / GPUS * model["forward"] / rate + ring(outputs, 1, LINKS[NETWORK]),
        "checkpoint": 8 * model["trained"] / (1e6 * costs["checkpoint_mb_s"]) / CHECKPOINT_EVERY,
        "batches, one core": work.samples / images_s,
    }


def ring(size: float, calls: int, link: Link) -> float:
    """Seconds of `calls` sums of `size` bytes in all, over all GPUs."""
    return 2 * (GPUS - 1) * (size / GPUS / link.bytes_s + calls * link.latency_s)


def seconds_of_memories(name: str, record: Record) -> float:
    """Seconds in which the memories of a round's clients travel to the GPUs and back, by broadcasts (trees)."""
    run, link, clients = record["jobs"]["scaffold"]["2"], LINKS[NETWORK], WORK[name].clients * GPUS
    calls = run["round"]["broadcast"]["calls"] / run["sampled"]  # of a client
    size = 2 * 4 * record["costs"]["models"][name]["trained"]
    return clients * float(size / link.bytes_s + calls * ceil(log2(GPUS)) * link.latency_s)


def summed(name: str, record: Record) -> float:
    """Bytes that a round sums."""
    return 4.0 * float(record["costs"]["models"][name]["trained"]) * vectors(record)


def vectors(record: Record) -> float:
    """What FedAdamW sums in a round, in vectors of the model's size."""
    run = on_two_ranks(record)
    return float(total(run["round"])[1] / (4 * run["d"]))


def evaluation_bytes(record: Record) -> float:
    """Bytes that an evaluation sums for a held-out sample."""
    run = on_two_ranks(record)
    return float(total(run["evaluation"])[1] / run["held_out"])


def on_two_ranks(record: Record) -> Record:
    """FedAdamW's job on two ranks."""
    found: Record = record["jobs"]["fedadamw"]["2"]
    return found


def total(sent: Mapping[str, Mapping[str, int]]) -> tuple[int, int]:
    """Calls and bytes of all operations."""
    return sum(s["calls"] for s in sent.values()), sum(s["bytes"] for s in sent.values())
