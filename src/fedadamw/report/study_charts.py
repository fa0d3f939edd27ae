"""Which charts a study has: curves with 95% bands over seeds, final scores, a setting's values, diagnostics."""

from math import inf

import altair as alt

from fedadamw.report.comparisons import describe_intervals
from fedadamw.report.metrics import begin_sentence, value_range
from fedadamw.report.run_charts import Chart
from fedadamw.report.study_files import ClientColumn, Results
from fedadamw.report.study_marks import AXES, Size, final_chart, interval_chart, kind_chart, line_chart
from fedadamw.report.study_rows import Curve, curve_rows, diagnostic_rows, final_rows, kind_rows, variant_names
from fedadamw.report.study_scores import by_score, has_clients, study_score
from fedadamw.report.study_table import ranked, score_name
from fedadamw.report.study_time import has_virtual_time, time_rows, unit_of

DIAGNOSTICS = {
    "v_dispersion": "Spread of v across clients: root of its mean variance over its mean",
    "v_variance": "Variance of v across clients, mean over coordinates",
    "drift": "Client drift: mean distance of the clients' models from their mean",
    "cosine": "Cosine of the clients' updates with the last global direction",
    "update_norm": "Norm of the clients' updates",
}
BY_KIND = {
    "v_variance": "Variance of v across clients by class of block, mean over rounds",
    "update_norm": "Norm of the clients' updates by class of block, mean over rounds",
}
OF_PAGE = Size()
OF_PICTURE = Size(420, 280)


def overview_chart(results: Results) -> Chart:
    """Return the score by round and, beside it, by the one varied numeric setting, virtual time or bytes sent."""
    left, setting = curve_chart(results, "score", by="round", size=OF_PICTURE), varied_setting(results)
    if setting is None and has_virtual_time(results):
        right = time_chart(results, size=OF_PICTURE)
    elif setting is None:
        right = curve_chart(results, "score", by="sent", size=OF_PICTURE)
    else:
        right = setting_chart(results, setting, size=OF_PICTURE)
    title = alt.TitleParams(describe_bands(results), fontSize=11, fontWeight="normal", color="#374151")
    return alt.hconcat(left, right, spacing=32, title=title)


def describe_bands(results: Results) -> str:
    """Say what bands, bars and points of the charts are."""
    if not any(s["seeds"] > 1 for s in results["summary"]):
        return describe_intervals(results)
    return f"Bands and bars: {describe_intervals(results)} Small points: the seeds."


def all_charts(results: Results, size: Size = OF_PAGE) -> dict[str, tuple[str, Chart]]:
    """Return every chart that the results have numbers for: element id -> (heading, chart)."""
    name, names, timed = score_name(results), variant_names(results), has_virtual_time(results)
    start = begin_sentence(name)
    charts: dict[str, tuple[str, Chart]] = {
        **({"virtual": (f"{start} by virtual time", time_chart(results, size=size))} if timed else {}),
        "score": (f"{start} by round", curve_chart(results, "score", by="round", size=size)),
        "bytes": (f"{start} by bytes sent", curve_chart(results, "score", by="sent", size=size)),
        **client_charts(results, size),
    }
    if any(loss is not None for run in results["runs"] for loss in run["train_loss"]):  # not with privacy
        charts["train"] = ("Clients' training loss", curve_chart(results, "train_loss", by="round", size=size))
    if study_score(results) == "test":
        charts["test"] = ("Test loss", curve_chart(results, "test_loss", by="round", size=size))
    setting = varied_setting(results)
    if setting is not None:
        charts["value"] = (f"{start} by {setting}", setting_chart(results, setting, size=size))
    finals = final_rows(results)
    if finals:
        order, limits = [s["variant"] for s in ranked(results)], value_range(results["metric"])
        chart = final_chart(finals, names, order=order, title=name, limits=limits, size=size)
        charts["final"] = (f"{start} after the last round", chart)
    for key, heading in DIAGNOSTICS.items():
        rows, limits = diagnostic_rows(results, key), (-1.0 if key == "cosine" else 0.0, inf)
        if rows:
            charts[key] = (heading, line_chart(rows, "round", key, names, title=AXES[key], limits=limits, size=size))
    for key, heading in BY_KIND.items():
        rows = kind_rows(results, key)
        if rows:
            charts[f"{key}-kinds"] = (heading, kind_chart(rows, key, names, size=size))
    return charts


def client_charts(results: Results, size: Size) -> dict[str, tuple[str, Chart]]:
    """Return the mean and the worst tenth of the clients' scores by round, without what is the study's score."""
    charts: dict[str, tuple[str, Chart]] = {}
    columns: tuple[ClientColumn, ...] = ("clients_mean", "clients_worst_decile")
    for column in columns if has_clients(results) else ():
        if column != study_score(results):
            seen = by_score(results, column)
            heading = f"{begin_sentence(score_name(seen))} by round"
            charts[column] = (heading, curve_chart(seen, "score", by="round", size=size))
    return charts


def curve_chart(results: Results, what: Curve, *, by: str, size: Size = OF_PAGE) -> Chart:
    """Return the mean of `what` over seeds, by `round` or megabytes `sent`, with 95% bands and the seeds' points."""
    rows, limits = curve_rows(results, what), value_range(results["metric"]) if what == "score" else (0.0, inf)
    title = score_name(results) if what == "score" else AXES[what]
    return line_chart(rows, by, what, variant_names(results), title=title, limits=limits, size=size)


def time_chart(results: Results, *, size: Size = OF_PAGE) -> Chart:
    """Return the mean score along virtual time, with 95% bands and the seeds' points; all runs have a clock."""
    names, limits = variant_names(results), value_range(results["metric"])
    title, x_title = score_name(results), unit_of(results).title()
    rows = time_rows(results)
    return line_chart(rows, "virtual", "score", names, title=title, limits=limits, size=size, x_title=x_title)


def varied_setting(results: Results) -> str | None:
    """Return the numeric setting in which the variants differ; None if they differ in anything else."""
    labels = [{k: v for k, v in s["label"].items() if k != "algorithm"} for s in results["summary"]]
    names = {name for label in labels for name in label}
    algorithms = {s["label"].get("algorithm") for s in results["summary"]}
    if len(names) != 1 or len(algorithms) != 1 or len(labels) < 2:
        return None
    (name,) = names
    return name if all(is_number(label.get(name, "")) for label in labels) else None


def is_number(text: str) -> bool:
    """Whether `text` is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def setting_chart(results: Results, setting: str, *, size: Size = OF_PAGE) -> Chart:
    """Return the final score by the value of `setting`, with 95% intervals and the seeds' points."""
    values = {s["variant"]: s["label"][setting] for s in results["summary"]}
    rows = [{**row, "value": values[str(row["variant"])]} for row in final_rows(results)]
    order = sorted(values.values(), key=float)
    x = alt.X("value:O", sort=order, title=setting.rpartition(".")[2], axis=alt.Axis(labelAngle=0))
    title = f"{score_name(results)} after the last round"
    return interval_chart(rows, along=x, title=title, limits=value_range(results["metric"]), size=size)
