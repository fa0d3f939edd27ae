"""The section of docs/performance.md on local steps with differential privacy of samples."""

# ruff: noqa: E501  (tables)

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

NAMES = {
    "vit-micro": "ViT-micro, images of 8 x 8",
    "vit-nano": "ViT-nano, images of 32 x 32",
    "minilm-lora": "MiniLM with LoRA, texts of 64 tokens",
}


def section(record: Mapping[str, Any] | None, table: Callable[[Sequence[str], Iterable[Sequence[str]]], str]) -> str:
    """Return the section; "" without a record of benchmarks/measure/privacy.py."""
    if record is None:
        return ""
    rows = [
        (
            NAMES[name],
            f"{found['d']:,}",
            str(found["batch"]),
            f"{found['ways']['loop']['ms']:,.1f}",
            *(
                f"{found['ways'][way]['of_plain']:.2f}"
                for way in ("loop, with privacy", "stacked, with privacy", "torch, Opacus")
            ),
        )
        for name, found in record["models"].items()
    ]
    head = ("", "trained numbers", "batch", "step, ms", "with privacy", "with privacy, stacked", "Opacus")
    return f"""## Steps with differential privacy of samples

`benchmarks/measure/privacy.py` ({record["device"]}, commit {str(record["commit"])[:9]}, Opacus {record["opacus"]}): a local step with clipped gradients of samples and
noise, as a multiple of the same step without, with batches of the same size; the fastest of {record["repeats"]}, in turns. Opacus's is a multiple of
the same step of a plain loop in torch. Clipped gradients equal Opacus's: the benchmark checks it before it times anything.

{table(head, rows)}
Linear layers, convolutions and norms take gradients of samples from one plain backward, whose factors are often enough:
where positions are few, a gradient's norm is computed from them, and no sample's gradient is made. Other models, and
stacked clients, take them by `torch.func.vmap`. See [privacy](privacy.md).
"""
