"""The section "On a GPU" of docs/performance.md, from the record of benchmarks/measure/gpu, or without one."""

# ruff: noqa: E501  (lines of the page)

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

INTRODUCTION = """## On a GPU

`benchmarks/measure/gpu` measures in one command, in less than nine minutes and without a network: that engines, codecs and LoRA give
the same numbers on the device, the local step, the paper's round, group sizes, CUDA graphs, memory, and 300 rounds on CIFAR-10
(`benchmarks/measure/gpu/README.md`):

```sh
python -m benchmarks.measure.gpu.pack gpu-folder --data ./data/cifar10   # a folder of at most 40 MB for the machine
cd gpu-folder && python -m benchmarks.measure.gpu                         # there
```
"""

NONE = """**There is no record of a GPU yet: nothing of this project has been measured on one.** On a CPU the same command runs with
`--device cpu --small`, which the tests do; that rounds and evaluations mix no tensors of two devices is tested with a device that
pretends. When compiling pays on a GPU (`engine/step.py`), and that all clients of a round are stacked there, are guesses.
"""

REST = """`training.precision=float32` is float32 on a GPU, too; by torch's default, cuDNN's convolutions would round to TF32.

Reproducibility: on a CPU with the same number of threads a run is the same bit for bit, resumed or not. On a GPU, everything that
is drawn beforehand on the CPU is the same: the partition, the clients of a round, their batches, crops and flips, the initial
model and the codecs' rounding. What the GPU computes is the same up to rounding: cuDNN chooses its algorithms, and
atomic additions have no fixed order. Dropout and drop path are drawn on the GPU, from seeds of the round and the client (of
a group's first client if clients are stacked), so they repeat on the same kind of device with the same `stack`.
"""


def section(record: Record | None) -> str:
    """The section; `record`: the newest committed one, None if there is none."""
    if record is None:
        return f"{INTRODUCTION}\n{NONE}\n{REST}"
    parts = (status, step, round_, engines, memory, trace, cifar)
    return "\n".join([INTRODUCTION, *(text for part in parts if (text := part(record))), REST])


def measured(record: Record, part: str) -> Mapping[str, Any]:
    """What succeeded of a part, by the measurement's name."""
    rows = record["parts"].get(part, {}).get("measured", {})
    return {name: row for name, row in rows.items() if not {"failed", "skipped", "left_out"} & row.keys()}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def status(record: Record) -> str:
    """What it was measured on, and what was not measured."""
    rows = [(n, p["status"], f"{p['seconds']:.0f} s", p.get("why", "")) for n, p in record["parts"].items()]
    where = f"{record['device']}, driver {record['driver']}, torch {record['torch']}, {record['date']}"
    return f"""The record ({where}, commit {str(record["commit"])[:9]}):

| part | | took | |
| --- | --- | ---: | --- |
{chr(10).join(f"| {' | '.join(row)} |" for row in rows)}
"""


def step(record: Record) -> str:
    """The local step, alone and many at a time."""
    found = measured(record, "step")
    timed = {name: row["steps"] for name, row in found.items() if "steps" in row}
    if not timed:
        return ""
    names = list(next(iter(timed.values())))
    rows = [
        (name, *(f"{steps[name]['ms']:.3f} ms, {steps[name]['of_fused']:.2f}" for steps in timed.values()))
        for name in names
    ]
    return f"A step of {record['parts']['step']['d']:,} parameters, and its share of fused AdamW's time:\n\n" + table(
        ("step", *timed), rows
    )


def round_(record: Record) -> str:
    """The paper's round."""
    found = {name: row for name, row in measured(record, "round").items() if "round_s" in row}
    if not found:
        return ""
    rows = [
        (
            name,
            f"{row['round_s']:.3f} s",
            f"{row['goal_s']:.1f} s",
            f"{row['tflop_s']:.1f}" if "tflop_s" in row else "",
            *(f"{100 * row[key]:.1f}%" if key in row else "" for key in ("of_listed_peak", "of_measured_peak")),
        )
        for name, row in found.items()
    ]
    head = ("", "a round", "goal", "TFLOP/s", "of the listed peak", "of a large product's rate")
    return f"The paper's round, ViT-Tiny, 10 clients x 50 steps x batch 50:\n\n{table(head, rows)}"


def engines(record: Record) -> str:
    """Ways to run the clients of a round."""
    rows = []
    for name, row in measured(record, "engines").items():
        for kind, of in {"": row, **{f", {k}": r for k, r in row.items() if isinstance(r, Mapping)}}.items():
            if "client_step_s" in of:
                rows.append((name + kind, f"{1e3 * of['client_step_s']:.3f} ms", ""))
        if "graph_of_plain" in row:
            rows.append((name, f"{1e3 * row['graph_client_step_s']:.3f} ms", f"{row['graph_of_plain']:.2f}"))
        if "compiled_of_plain" in row:
            seconds, ratio = row["compiled_gradient_s"], row["compiled_of_plain"]
            rows.append((f"{name} (gradient)", f"{1e3 * seconds:.3f} ms", f"{ratio:.2f}"))
    head = ("way", "a client's step", "of the plain form")
    return f"Ways to run a round of ten clients:\n\n{table(head, rows)}" if rows else ""


def memory(record: Record) -> str:
    """Llama shapes."""
    rows = [
        (name, f"{row['known_gb']:.2f}", f"{row['peak_gb']:.2f}", f"{row['reserved_gb']:.2f}", f"{row['step_s']:.2f} s")
        for name, row in measured(record, "memory").items()
        if row.get("peak_gb") is not None
    ]
    head = ("GB", "weights, vectors, logits", "peak", "reserved", "a step")
    return f"A step of a client that trains LoRA on a Llama shape:\n\n{table(head, rows)}" if rows else ""


def trace(record: Record) -> str:
    """The longest kernels of a stacked round in bf16."""
    row = measured(record, "trace").get("kernels, bf16, stacked")
    if row is None:
        return ""
    rows = [(f"`{k['name'][:60]}`", f"{100 * k['share']:.1f}%", f"{k['calls']:,}") for k in row["longest"]]
    return f"The longest kernels of a stacked round in bf16:\n\n{table(('kernel', 'share', 'calls'), rows)}"


def cifar(record: Record) -> str:
    """A whole job."""
    row = next(iter(measured(record, "cifar").values()), None)
    if row is None or not row["rounds"]:
        return ""
    return f"""{row["rounds"]} of {row["of_rounds"]} rounds with evaluations ({row["images"]}) took {row["ran_s"]:.0f} s; all of them take
{row["all_rounds_s"]:.0f} s (goal: {row["goal_s"]:.0f} s). Accuracy after the last one: {row["accuracy"]:.3f}.
"""
