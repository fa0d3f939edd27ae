"""Sections and pictures of docs/theory.md on curvature, blocks and clients, from the record of theory_curvature."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.common.records import read_newest
from fedadamw.report.run_charts import Chart
from fedadamw.theory.curvature.blocks_output import (
    EXPLAINED_HEADINGS,
    SHARE_HEADINGS,
    blocks_chart,
    explained_rows,
    maps_chart,
    share_rows,
)
from fedadamw.theory.curvature.inside import Curvature, Inside, Map
from fedadamw.theory.curvature.moments import Explained
from fedadamw.theory.curvature.shares import Share
from fedadamw.theory.curvature.spectrum import Spectrum
from fedadamw.theory.curvature.spectrum_output import spectrum_chart
from fedadamw.theory.rounds import FIGURES, draw

MISSING = "There is no record yet: `python -m benchmarks.measure.theory_curvature --record`.\n"
IMAGES = {"cifar10": "CIFAR-10", "tiny-imagenet": "Tiny-ImageNet"}
TIMES = {"start": "at the start", "end": "at the end"}
Record = Mapping[str, Any]


def read() -> Record | None:
    """Return the newest record."""
    return read_newest("theory-curvature", "cpu")


def pictures() -> dict[str, Chart]:
    """Return the pictures by name, if there is a record."""
    record = read()
    if record is None:
        return {}
    tiny, clients = record["tiny-imagenet"]["end"], record["digits"]["clients"]
    drawn: dict[str, Chart] = {
        "spectrum": spectrum_chart(_spectrum(record["digits"]["spectra"]["end"])),
        "blocks": blocks_chart(_curvature(tiny), _explained(tiny)),
        "blocks-maps": maps_chart([each for each in _curvature(tiny).maps if each.kind != "key"][:2]),
    }
    return drawn | {figure: draw(figure, clients) for figure in FIGURES}


def _spectrum(facts: Record) -> Spectrum:
    values, counts = (torch.tensor(facts[name], dtype=torch.float64) for name in ("values", "counts"))
    return Spectrum(facts["matrix"], facts["method"], facts["d"], facts["samples"], values, counts)


def _curvature(facts: Record) -> Curvature:
    measured = facts["curvature"]
    inside = [
        Inside(**{**row, "shape": tuple(row["shape"]), "share": Share(**row["share"])})
        for row in measured["parameters"]
    ]
    maps = [Map(each["parameter"], each["kind"], torch.tensor(each["values"])) for each in measured["maps"]]
    return Curvature(measured["samples"], measured["outputs"], inside, maps, measured["left_out"])


def _explained(facts: Record) -> dict[str, Explained]:
    return {name: Explained(**found) for name, found in facts["log_v"].items() if name != "batches"}


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, its first column on the left."""
    lines = [f"| {' | '.join(headings)} |", f"| --- |{' ---: |' * (len(headings) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def spectrum() -> str:
    """The section on eigenvalues."""
    record = read()
    if record is None:
        return MISSING
    spectra = record["digits"]["spectra"]
    names = {name: f"Gauss-Newton, {when}" for name, when in TIMES.items()} | {"hessian": "Hessian (*), at the end"}
    rows = [
        [
            text,
            f"{facts['largest']:.3g}",
            f"{facts['smallest']:.3g}",
            f"{facts['trace']:.3g}",
            f"{max(1, round(facts['half_of_trace'])):,}",
        ]
        for name, text in names.items()
        for facts in [spectra[name]]
    ]
    end = spectra["end"]
    text = (
        f"`vit-micro` on digits ({end['d']:,} parameters, {end['samples']} samples), {record['digits']['rounds']} "
        f"rounds. Half of the trace is in {max(1, round(end['half_of_trace'])):,} of its eigenvalues at the end. "
        "(*) By Lanczos: its trace and its count are estimates from a few random vectors.\n"
    )
    headings = ("matrix", "largest", "smallest", "trace", "eigenvalues with half of the sum of sizes")
    return f"![Eigenvalues by rank](theory/spectrum.svg)\n\n{table(headings, rows)}\n{text}"


def blocks() -> str:
    """The section on curvature inside blocks."""
    record = read()
    if record is None:
        return MISSING
    curvature = _curvature(record["tiny-imagenet"]["end"])
    heads = []
    for data, name in IMAGES.items():
        for at, when in TIMES.items():
            found = _curvature(record[data][at])
            heads.append([f"{name}, {found.outputs} classes, {when}", *_mean_shares(found)])
    lines = [
        "![Curvature inside blocks, and what blocks explain of v](theory/blocks.svg)\n",
        f"Tiny-ImageNet, {curvature.outputs} classes, after {record['tiny-imagenet']['rounds']} rounds; "
        f"{curvature.samples} samples:\n",
        table(SHARE_HEADINGS, share_rows(curvature)),
        "The same network on 10 and on 200 classes, means over its layers:\n",
        table(("", "heads of queries and keys", "by chance", "rows of the MLP", "by chance "), heads),
        "![Curvature between the rows of two matrices](theory/blocks-maps.svg)\n",
    ]
    return "\n".join(lines)


def _mean_shares(curvature: Curvature) -> list[str]:
    """Return the mean shares inside heads, and rows of the MLP, each with what shuffled blocks give."""
    heads = [each.share for each in curvature.inside if each.cut == "heads" and each.kind in ("query", "key")]
    rows = [each.share for each in curvature.inside if each.kind == "mlp"]
    means = (statistics.mean(getattr(s, n) for s in group) for group in (heads, rows) for n in ("inside", "shuffled"))
    return [f"{mean:.3f}" for mean in means]


def log_v() -> str:
    """The section on what blocks explain of v."""
    record = read()
    if record is None:
        return MISSING
    parts = [
        f"{name}:\n\n{table(EXPLAINED_HEADINGS, explained_rows(_explained(record[data]['end'])))}"
        for data, name in IMAGES.items()
    ]
    return "\n".join(parts)


def clients() -> str:
    """The section on how clients differ."""
    record = read()
    if record is None:
        return MISSING
    runs = record["digits"]["clients"]
    keys = {"v_dispersion": "spread of v over clients", "drift_share": "drift over norm", "cosine": "cosine"}
    rows = [[f"`{name}`", *(f"{_mean(rounds, key):.2f}" for key in keys)] for name, rounds in runs.items()]
    return "\n".join(
        [
            f"Digits, {record['digits']['rounds']} rounds, means over the rounds:\n",
            table(("run", *keys.values()), rows),
            *(f"![{text}](theory/{name}.svg)\n" for name, text in PICTURED.items()),
        ]
    )


PICTURED = {
    "variance": "Variance of v over clients and rounds",
    "drift": "Client drift by round",
    "alignment": "Alignment of updates with the last direction by round",
}


def _mean(rounds: Sequence[Record], key: str) -> float:
    return statistics.mean(value for numbers in rounds if (value := numbers.get(key)) is not None)


SECTIONS: Mapping[str, Callable[[], str]] = {
    "spectrum": spectrum,
    "blocks": blocks,
    "log-v": log_v,
    "clients": clients,
}
