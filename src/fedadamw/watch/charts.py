"""Charts of a run's clients: each one's loss by round, and in the last round."""

from collections.abc import Sequence

import altair as alt

from fedadamw.report.run_charts import BLUE, Chart
from fedadamw.report.run_files import LossesDict

MAX_CELLS = 3000  # of the chart by round; the oldest rounds are left out
MAX_BARS = 120
COLORS = ("#38bdf8", "#a855f7", "#f97316")  # of losses from low to high, on light and dark pages
RED = "#dc2626"


def losses_by_client(lines: Sequence[LossesDict], clients: int) -> Chart:
    """Return a cell for each sampled client (of `clients`) and round, colored by its loss, red if not accepted."""
    sampled = max((len(line["clients"]) for line in lines), default=1)
    shown = lines[-max(MAX_CELLS // max(sampled, 1), 1) :]
    rows = [
        {"round": line["round"], "client": client, "loss": loss}
        for line in shown
        for client, loss in zip(line["clients"], line["losses"], strict=False)
    ]
    edges = {"round0": "datum.round - 0.5", "round1": "datum.round + 0.5"}
    edges |= {"client0": "datum.client - 0.5", "client1": "datum.client + 0.5"}
    every = alt.Scale(domain=[-0.5, clients - 0.5], nice=False)
    base = (
        alt.Chart(alt.Data(values=rows), title="Training loss of the sampled clients")
        .transform_calculate(**edges)
        .encode(
            x=alt.X("round0:Q", title="round", scale=alt.Scale(zero=False, nice=False), axis=_whole_numbers()),
            x2="round1:Q",
            y=alt.Y("client0:Q", title="client", scale=every, axis=_whole_numbers()),
            y2="client1:Q",
            tooltip=["round:Q", "client:Q", alt.Tooltip("loss:Q", format=".4f")],
        )
    )
    color = alt.Color("loss:Q", title="loss", scale=alt.Scale(range=COLORS))
    cells: Chart = base.transform_filter("isValid(datum.loss)").mark_rect().encode(color=color)
    if any(row["loss"] is None for row in rows):
        cells = cells + base.transform_filter("!isValid(datum.loss)").mark_rect(color=RED)
    return cells.properties(width="container", height=300)


def losses_of_last_round(lines: Sequence[LossesDict]) -> Chart:
    """Return the losses of the last round's clients as bars, by the client's number."""
    last = lines[-1]
    pairs = list(zip(last["clients"], last["losses"], strict=False))
    rows = [{"client": client, "loss": loss} for client, loss in pairs if loss is not None][:MAX_BARS]
    return (
        alt.Chart(alt.Data(values=rows), title="The last round's clients")
        .mark_bar(color=BLUE)
        .encode(
            x=alt.X("client:O", title="client", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("loss:Q", title="training loss"),
            tooltip=["client:O", alt.Tooltip("loss:Q", format=".4f")],
        )
        .properties(width="container", height=300)
    )


def _whole_numbers() -> alt.Axis:
    return alt.Axis(tickMinStep=1, format="d", grid=False)
