"""Shows why v is shared in blocks: curvature inside them beside chance, maps of it, and what they explain of v."""

import base64
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import altair as alt
import numpy as np
from PIL import Image

from fedadamw.io.escaping import escape_text
from fedadamw.report.run_charts import BLUE, GREY, ORANGE, Chart
from fedadamw.theory.curvature.inside import Curvature, Inside, Map
from fedadamw.theory.curvature.moments import Explained

SHARE_HEADINGS = ("weights, cut into", "layers", "blocks", "inside", "shuffled", "even")
EXPLAINED_HEADINGS = ("blocks of", "blocks", "explained of log v", "by chance")
MEASURED, SHUFFLED, EVEN = "inside blocks", "as many shuffled", "if it were even"
DARK = "#172554"
SIDE = 200  # of a map in pixels
SHARP = 3  # pixels of its picture for each of these
BY_CHANCE = (SHUFFLED, EVEN)


class Row(NamedTuple):
    """The mean over layers with weights of one role and shape."""

    label: str
    layers: int
    blocks: int
    inside: float
    shuffled: float
    even: float


def merge_layers(found: Sequence[Inside]) -> list[Row]:
    """Return the mean over the layers of each role, shape and cut, in the order of the model."""
    groups: dict[str, list[Inside]] = {}
    for each in found:
        groups.setdefault(each.label, []).append(each)
    return [
        Row(
            label,
            len(group),
            group[0].blocks,
            *(statistics.mean(getattr(each.share, name) for each in group) for name in ("inside", "shuffled", "even")),
        )
        for label, group in groups.items()
    ]


def share_rows(curvature: Curvature) -> list[list[str]]:
    """Return the table's cells under SHARE_HEADINGS."""
    return [
        [row.label, str(row.layers), f"{row.blocks:,}", *(f"{share:.3f}" for share in row[3:])]
        for row in merge_layers(curvature.inside)
    ]


def explained_rows(explained: Mapping[str, Explained]) -> list[list[str]]:
    """Return the table's cells under EXPLAINED_HEADINGS."""
    return [
        [name, f"{found.blocks:,}", f"{found.share:.1%}", f"{found.chance:.1%}"] for name, found in explained.items()
    ]


def blocks_chart(curvature: Curvature, explained: Mapping[str, Explained]) -> Chart:
    """Return the shares inside blocks, and what blocks explain of log v, side by side."""
    pair = alt.hconcat(_shares_chart(curvature), _explained_chart(explained), spacing=40)
    return pair.resolve_scale(color="independent", shape="independent")


def _shares_chart(curvature: Curvature) -> alt.LayerChart:
    rows = merge_layers(curvature.inside)
    points = [
        {"label": escape_text(row.label), "of": name, "share": max(value, 1e-6)}
        for row in rows
        for name, value in zip((MEASURED, *BY_CHANCE), row[3:], strict=True)
    ]
    title = alt.TitleParams(
        "Squared curvature inside blocks", subtitle=f"Gauss-Newton, exact, {curvature.samples:,} samples"
    )
    ends = alt.Scale(type="log", domainMax=1, nice=True)
    axis = alt.Axis(format="~g", values=[10.0**power for power in range(-6, 1)])
    base = alt.Chart(alt.Data(values=points), title=title).encode(
        x=alt.X("share:Q", title="share", scale=ends, axis=axis),
        y=alt.Y("label:N", title=None, sort=None, axis=alt.Axis(labelLimit=260, grid=True)),
        color=alt.Color(
            "of:N",
            title=None,
            scale=alt.Scale(domain=[MEASURED, *BY_CHANCE], range=[BLUE, ORANGE, GREY]),
            legend=alt.Legend(orient="bottom", symbolType="circle"),
        ),
    )
    ticks = base.mark_tick(thickness=3, height=16).transform_filter(alt.datum.of != MEASURED)
    points_of_measured = base.mark_circle(size=90, opacity=1).transform_filter(alt.datum.of == MEASURED)
    return (ticks + points_of_measured).properties(width=380, height=max(26 * len(rows), 120))


def _explained_chart(explained: Mapping[str, Explained]) -> alt.LayerChart:
    rows = [
        {"blocks": f"{name}, {found.blocks:,}", "share": found.share, "chance": found.chance}
        for name, found in explained.items()
    ]
    title = alt.TitleParams("Variance of log v explained by blocks", subtitle="line: by as many random blocks")
    base = alt.Chart(alt.Data(values=rows), title=title).encode(y=alt.Y("blocks:N", title=None, sort=None))
    scale = alt.Scale(domain=[0, 1])
    bars = base.mark_bar(color=BLUE, height=16).encode(
        x=alt.X("share:Q", title="share", scale=scale, axis=alt.Axis(format="%"))
    )
    ticks = base.mark_tick(color=ORANGE, thickness=3, height=22).encode(x=alt.X("chance:Q", scale=scale))
    return (bars + ticks).properties(width=260, height=36 * len(rows))


def maps_chart(maps: Sequence[Map]) -> Chart:
    """Return a heat map for each matrix: the curvature between its rows, dark where it is large."""
    return alt.hconcat(*(_map_chart(each) for each in maps), spacing=24).resolve_scale(color="shared")


def _map_chart(found: Map) -> alt.LayerChart:
    """Return one map as a picture inside the chart: its cells as shapes would be hundreds of kilobytes."""
    size = len(found.values)
    title = alt.TitleParams(escape_text(_short(found.parameter)), fontSize=11)
    axis = alt.Axis(values=list(range(0, size, max(1, size // 4))), labelAngle=0, ticks=False, domain=False, grid=False)
    ends = alt.Scale(domain=[0, size], nice=False)
    downward = alt.Scale(domain=[size, 0], nice=False)
    corner = {"x": 0, "y": 0, "x2": size, "y2": size, "value": 0, "picture": _encode(found.values.numpy())}
    base = alt.Chart(alt.Data(values=[corner, {**corner, "value": 1}]), title=title).encode(
        x=alt.X("x:Q", title="output row", scale=ends, axis=axis),
        y=alt.Y("y:Q", title=None, scale=downward, axis=axis),
    )
    picture = base.transform_filter("datum.value == 0").mark_image(
        width=SIDE, height=SIDE, align="left", baseline="top", aspect=False
    )
    scale = alt.Scale(type="sqrt", range=["white", DARK], domain=[0, 1], interpolate="rgb")
    legend = alt.Legend(format="~g", type="gradient")
    ramp = base.mark_point(opacity=0, size=0).encode(
        color=alt.Color("value:Q", title=["root of", "squares"], scale=scale, legend=legend)
    )
    return (picture.encode(url="picture:N") + ramp).properties(width=SIDE, height=SIDE)


def _encode(values: np.ndarray) -> str:
    """Return values of 0 to 1, (n, n), as a PNG in a URL: white to DARK by their root, as the legend has them."""
    depth = np.sqrt(np.clip(values, 0, 1))[..., None]
    dark = np.array([int(DARK[i : i + 2], 16) for i in (1, 3, 5)])
    pixels = np.rint(255 + (dark - 255) * depth).astype(np.uint8)
    times = max(1, round(SHARP * SIDE / len(values)))  # cells of whole pixels, which no viewer blurs
    file = io.BytesIO()
    Image.fromarray(pixels.repeat(times, 0).repeat(times, 1)).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _short(parameter: str) -> str:
    """Return a parameter's name without `weight` and the part that all have in common."""
    parts = parameter.split(".")
    return ".".join(parts[-4:-1] if parts[-1] == "weight" else parts[-4:])
