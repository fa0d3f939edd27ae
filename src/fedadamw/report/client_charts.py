"""Charts of the clients' scores: their distribution by round, sorted, and against what each client has."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import altair as alt
import numpy as np

from fedadamw.report.client_scores import Evaluated, choose_evenly, spread
from fedadamw.report.metrics import axis_format, begin_sentence, label
from fedadamw.report.run_charts import BLUE, ORANGE, Chart, Width, rounds_axis
from fedadamw.report.study_marks import COLORS

MAX_EVALUATIONS = 300  # of the chart by round
MAX_LINES = 6  # clients that have a line each there; of more, their distribution is drawn
MAX_BARS = 40  # clients that are sorted as bars with their names
MAX_SORTED = 200  # points of the curve through more of them
MAX_POINTS = 400  # clients that are points; more are counted in cells
CELLS = (32, 20)  # columns and rows of these
LOGARITHMIC_FROM = 20.0  # largest over smallest number of samples
LIGHT, MIDDLE = "rgba(37, 99, 235, 0.16)", "rgba(37, 99, 235, 0.30)"  # of the bands, on light and dark pages
OUTER, INNER, MEDIAN, MEAN = "worst to best tenth", "middle half", "median", "mean"
Names = Mapping[int, str]  # of clients


def name_client(client: int, names: Names) -> str:
    """Return a client's name, by default `client 3`."""
    return names.get(client, f"client {client}")


def rounds_chart(found: Sequence[Evaluated], names: Names, *, width: Width = "container", height: int = 240) -> Chart:
    """Return the clients' scores by round: of a few clients each one's, of more their distribution.

    found: one evaluation or more.
    """
    chosen = [found[i] for i in choose_evenly(len(found), MAX_EVALUATIONS)]
    few = len({client for each in chosen for client in each.clients.tolist()}) <= MAX_LINES
    chart = _lines(chosen, names) if few else _bands(found, chosen)
    return chart.properties(width=width, height=height)


def _lines(found: Sequence[Evaluated], names: Names) -> alt.LayerChart:
    """Return a line for each client."""
    places = [(each, i) for each in found for i in range(len(each.clients)) if np.isfinite(each.scores[i])]
    rows = [{"round": each.round, "of": f"client {each.clients[i]}", **_about(each, i, names)} for each, i in places]
    metric, order = found[-1].main, sorted({(row["number"], row["of"]) for row in rows})
    scale = alt.Scale(domain=[name for _, name in order], range=list(COLORS[: len(order)]))
    title = _title(begin_sentence(f"{label(metric)} of clients by round"), "on their own held-out samples")
    base = alt.Chart(alt.Data(values=rows), title=title).encode(
        x=alt.X("round:Q", title="round", axis=rounds_axis(row["round"] for row in rows), scale=alt.Scale(nice=False)),
        y=_values("score", metric),
        color=alt.Color("of:N", title=None, scale=scale, legend=alt.Legend(orient="bottom", columns=3)),
    )
    hover = [alt.Tooltip("round:Q"), alt.Tooltip("client:N"), _score_hover(metric, label(metric))]
    return base.mark_line(strokeWidth=2) + base.mark_circle(size=24, opacity=1).encode(tooltip=hover)


def _bands(found: Sequence[Evaluated], chosen: Sequence[Evaluated]) -> alt.LayerChart:
    """Return the distribution in the chosen evaluations."""
    pairs = [(each.round, spread(each)) for each in chosen]
    rows = [{"round": round_, **values._asdict()} for round_, values in pairs if values is not None]
    metric, clients = found[-1].main, len(found[-1].clients)
    cut = "" if len(chosen) == len(found) else f", {len(chosen)} of {len(found):,} evaluations"
    title = _title(
        begin_sentence(f"{label(metric)} of clients by round"), f"{clients:,} clients, own held-out samples{cut}"
    )
    base = alt.Chart(alt.Data(values=rows), title=title).encode(
        x=alt.X("round:Q", title="round", axis=rounds_axis(row["round"] for row in rows), scale=alt.Scale(nice=False))
    )
    single = len(rows) == 1
    layers = [
        _band(_named(base, OUTER), "worst", "best", metric, width=24, single=single),
        _band(_named(base, INNER), "quarter", "three_quarters", metric, width=12, single=single),
        _named(base, MEDIAN).mark_line(strokeWidth=2).encode(y=_values("median", metric)),
        _named(base, MEAN).mark_line(strokeWidth=2, strokeDash=[5, 3]).encode(y=_values("mean", metric)),
        base.mark_circle(size=24, color=BLUE, opacity=1).encode(y=_values("median", metric), tooltip=_hover(metric)),
    ]
    return alt.layer(*layers)


def _named(base: alt.Chart, name: str) -> alt.Chart:
    """Return a layer in the color that the legend has for its name."""
    scale = alt.Scale(domain=[OUTER, INNER, MEDIAN, MEAN], range=[LIGHT, MIDDLE, BLUE, ORANGE])
    legend = alt.Legend(orient="bottom", symbolType="square", symbolOpacity=1, symbolStrokeWidth=0, columns=2)
    return base.transform_calculate(of=f"'{name}'").encode(
        color=alt.Color("of:N", title=None, scale=scale, legend=legend)
    )


def _band(base: alt.Chart, low: str, high: str, metric: str, *, width: int, single: bool) -> alt.Chart:
    """Return a band over the rounds; of a single round a bar, since an area has no width there."""
    mark = base.mark_bar(width=width, opacity=1) if single else base.mark_area(opacity=1)
    return mark.encode(y=_values(low, metric), y2=f"{high}:Q")


def _values(column: str, metric: str) -> alt.Y:
    axis = alt.Axis(format=axis_format(metric))
    return alt.Y(f"{column}:Q", title=None, axis=axis, scale=alt.Scale(zero=False))


def _hover(metric: str) -> list[alt.Tooltip]:
    titles = {
        "mean": "mean",
        "worst": "worst tenth, mean",
        "quarter": "a quarter of them below",
        "median": "median",
        "three_quarters": "a quarter of them above",
        "best": "best tenth, mean",
    }
    form = _number_format(metric)
    return [alt.Tooltip("round:Q"), *(alt.Tooltip(f"{k}:Q", title=v, format=form) for k, v in titles.items())]


def sorted_chart(last: Evaluated, names: Names, *, width: Width = "container", height: int = 240) -> Chart:
    """Return the scores of one evaluation's clients, worst first: as bars, or as a curve if they are many."""
    order = last.worst_first()
    bars = len(order) <= MAX_BARS
    shown = choose_evenly(len(order), len(order) if bars else MAX_SORTED)
    rows = [{"rank": i + 1, **_about(last, int(order[i]), names)} for i in shown]
    cut = "" if len(shown) == len(order) else f", {len(shown)} shown, evenly"
    title = _title(f"Clients by {label(last.main)}", f"round {last.round}, {len(order):,} clients{cut}")
    base = alt.Chart(alt.Data(values=rows), title=title)
    chart = _bars(base, last.main) if bars else _curve(base, last.main, len(order))
    return chart.properties(width=width, height=height)


def _bars(base: alt.Chart, metric: str) -> alt.Chart:
    axis = alt.Axis(labelAngle=0, labelOverlap=True, labelSeparation=6)
    return base.mark_bar(color=BLUE).encode(
        x=alt.X("number:O", title="client, worst first", sort=alt.SortField("rank"), axis=axis),
        y=alt.Y("score:Q", title=None, axis=alt.Axis(format=axis_format(metric))),
        tooltip=[alt.Tooltip("client:N"), _score_hover(metric, label(metric))],
    )


def _curve(base: alt.Chart, metric: str, clients: int) -> alt.LayerChart:
    ranks = alt.X("rank:Q", title="clients, worst first", scale=alt.Scale(domain=[1, clients], nice=False))
    line = base.encode(x=ranks, y=_values("score", metric))
    hover = [alt.Tooltip("client:N"), alt.Tooltip("rank:Q"), _score_hover(metric, label(metric))]
    points = line.mark_circle(size=20, color=BLUE, opacity=1).encode(tooltip=hover)
    return line.mark_line(color=BLUE, strokeWidth=2) + points


def _about(last: Evaluated, place: int, names: Names) -> dict[str, int | float | str]:
    """Return the row of the client at a place of the evaluation."""
    client = int(last.clients[place])
    return {"number": client, "client": name_client(client, names), "score": float(last.scores[place])}


class Across(NamedTuple):
    """What clients' scores are drawn against. of: what the values are. form: of them, in D3's language."""

    values: np.ndarray  # (n,) of the evaluated clients; NaN where it is not known
    heading: str  # of the chart
    of: str
    scored: str  # what the scores are
    form: str = ",.0f"
    logarithmic: bool = False  # the axis, if the values differ widely

    @property
    def known(self) -> np.ndarray:
        """Which clients can be drawn, (n,)."""
        known: np.ndarray = np.isfinite(self.values) & ((self.values > 0) | (not self.logarithmic))
        return known


def against_chart(
    last: Evaluated, across: Across, names: Names, *, width: Width = "container", height: int = 240
) -> Chart:
    """Return each client's score against a value of it: points, or counts in cells if they are many."""
    shown = np.flatnonzero(across.known & np.isfinite(last.scores))
    x = across.values[shown]
    logarithmic = across.logarithmic and len(x) > 0 and bool(x.max() > LOGARITHMIC_FROM * x.min())
    ticks = {"values": _decades(x)} if logarithmic else {"tickCount": 6}
    axis = alt.Axis(format="%" if "%" in across.form else "~s", **ticks)
    scale = alt.Scale(type="log", nice=False) if logarithmic else alt.Scale(zero=False)
    encoding = {"title": across.of, "scale": scale, "axis": axis}
    title = _title(begin_sentence(across.heading), f"round {last.round}, {len(x):,} clients")
    if len(x) <= MAX_POINTS:
        rows = [{"x": float(across.values[i]), **_about(last, int(i), names)} for i in shown]
        hover = [alt.Tooltip("client:N"), alt.Tooltip("x:Q", title=across.of, format=across.form)]
        hover.append(_score_hover(last.main, across.scored))
        chart = alt.Chart(alt.Data(values=rows), title=title).mark_circle(color=BLUE, size=46, opacity=0.55)
        chart = chart.encode(x=alt.X("x:Q", **encoding), y=_values("score", last.main), tooltip=hover)
    else:
        counted = _count_cells(x, last.scores[shown], logarithmic=logarithmic)
        chart = _cells(alt.Chart(alt.Data(values=counted), title=title), counted, encoding, across, last.main)
    return chart.properties(width=width, height=height)


def _cells(
    base: alt.Chart, rows: Sequence[Mapping[str, float]], encoding: Mapping[str, object], across: Across, metric: str
) -> alt.Chart:
    """Return the cells, darker where more clients are."""
    forms = {"x": (across.of, across.form), "y": (across.scored, _number_format(metric))}
    hover = [
        alt.Tooltip(f"{column}{i}:Q", title=f"{what} {way}", format=form)
        for column, (what, form) in forms.items()
        for i, way in enumerate(("from", "to"))
    ]
    shade = alt.Scale(range=["#bfdbfe", "#1e3a8a"], type="log" if max(r["clients"] for r in rows) > 20 else "linear")
    color = alt.Color("clients:Q", title="clients", scale=shade, legend=alt.Legend(format="~s", tickCount=4))
    return base.mark_rect().encode(
        x=alt.X("x0:Q", **encoding),
        x2="x1:Q",
        y=_values("y0", metric),
        y2="y1:Q",
        color=color,
        tooltip=[alt.Tooltip("clients:Q", format=",d"), *hover],
    )


def _count_cells(x: np.ndarray, y: np.ndarray, *, logarithmic: bool) -> list[dict[str, float]]:
    """Return the edges of the cells that have clients, and how many each has."""
    counts, columns, lines = np.histogram2d(np.log(x) if logarithmic else x, y, bins=CELLS)
    columns = np.exp(columns) if logarithmic else columns
    edges = {"x0": columns[:-1], "x1": columns[1:]}, {"y0": lines[:-1], "y1": lines[1:]}
    return [
        {
            **{name: float(f"{values[i]:.4g}") for name, values in edges[0].items()},
            **{name: float(f"{values[j]:.4g}") for name, values in edges[1].items()},
            "clients": int(counts[i, j]),
        }
        for i, j in zip(*np.nonzero(counts), strict=True)
    ]


def _decades(x: np.ndarray) -> list[float]:
    """Return where a logarithmic axis has its lines: 1, 2, 5, 10, ... as far as the values go."""
    lines = [m * 10.0**power for power in range(int(np.log10(x.max())) + 1) for m in (1, 2, 5)]
    return [line for line in lines if x.min() <= line <= x.max()]


def _score_hover(metric: str, title: str) -> alt.Tooltip:
    return alt.Tooltip("score:Q", title=title, format=_number_format(metric))


def _number_format(metric: str) -> str:
    return ".2%" if axis_format(metric) == "%" else ".4g"


def _title(text: str, below: str) -> alt.TitleParams:
    return alt.TitleParams(text, subtitle=below)
