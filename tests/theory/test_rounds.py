"""The figures of runs with diagnostics."""

import json
import statistics

import pytest

from fedadamw.theory.rounds import draw, read_rounds, table_rows
from fedadamw.validation import InputError


@pytest.fixture
def make_run(tmp_path):
    """make_run(name, numbers): a folder with a record for each of `numbers`, a round's diagnostics or None."""

    def make(name, numbers):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("")
        lines = [{"round": i + 1, **({} if n is None else {"diagnostics": n})} for i, n in enumerate(numbers)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return make


def numbers_of(i, **others):
    kinds = {"query": 1e-3 * (i + 1), "head": 2e-3}
    return {
        "drift": 0.5 + i, "update_norm": 1.0 + i, "update_norm_by_kind": kinds, "cosine": 0.1 * i if i else None,
        "v_variance": 1e-4, "v_variance_by_kind": kinds, "v_dispersion": 2.0, "v_mean": 1.0, "v_mean_by_kind": kinds,
        **others,
    }  # fmt: skip


def panels_of(chart):
    return [panel["title"] if isinstance(panel["title"], str) else panel["title"]["text"] for panel in chart["hconcat"]]


def rows_of(chart, panel):
    """The points of a panel: altair keeps data that all panels share with the whole chart."""
    return (chart["hconcat"][panel].get("data") or chart["data"])["values"]


def test_each_figure_has_a_line_a_run(make_run):
    runs = read_rounds(
        [make_run("a", [numbers_of(i) for i in range(3)]), make_run("b", [numbers_of(i) for i in range(3)])]
    )
    drift = draw("drift", runs).to_dict()
    assert panels_of(drift) == ["Client drift", "Drift over the norm of the updates"]
    shares = [row["drift_share"] for row in rows_of(drift, 1) if row["variant"] == "b"]
    assert shares == pytest.approx([0.5, 1.5 / 2, 2.5 / 3])
    alignment = draw("alignment", runs).to_dict()
    assert [row["round"] for row in rows_of(alignment, 0)] == [2, 3, 2, 3]  # none in the first
    variance = draw("variance", runs).to_dict()
    over_rounds = {row["kind"]: row["v_over_rounds"] for row in rows_of(variance, 2)}
    assert over_rounds["head"] == 0
    assert over_rounds["query"] == pytest.approx(statistics.stdev([1, 2, 3]) / 2)
    assert table_rows("drift", runs)[0] == ["a", "3", "0.5", "0.6944", "0.8333"]


def test_a_v_that_grows_in_all_classes_alike_does_not_spread(make_run):
    def grown(i):
        return {"v_mean": 0.1 * 2**i, "v_mean_by_kind": {"query": 0.3 * 2**i, "head": 0.05 * 2**i * (i + 1)}}

    run = make_run("a", [numbers_of(i, **grown(i)) for i in range(3)])
    found = rows_of(draw("variance", read_rounds([run])).to_dict(), 2)
    spread = {row["kind"]: row["v_over_rounds"] for row in found}
    assert spread["query"] == pytest.approx(0)
    assert spread["head"] == pytest.approx(statistics.stdev([1, 2, 3]) / 2)


def test_a_run_of_an_older_version_has_no_panel_over_rounds(make_run):
    older = [{k: v for k, v in numbers_of(i).items() if not k.startswith("v_mean")} for i in range(3)]
    assert len(draw("variance", read_rounds([make_run("a", older)])).to_dict()["hconcat"]) == 2


def test_runs_with_one_name_are_told_apart(make_run):
    paths = [make_run("x/run", [numbers_of(0)]), make_run("y/run", [numbers_of(0)])]
    assert list(read_rounds(paths)) == list(map(str, paths))


def test_what_cannot_be_drawn_is_one_line(make_run, tmp_path):
    with pytest.raises(InputError, match="nowhere holds no run"):
        read_rounds([tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"has no diagnostics; run it with -s training.diagnostics=true --ranks 1"):
        read_rounds([make_run("plain", [None, None])])
    momentless = [{"drift": 1.0, "update_norm": 2.0, "cosine": None} for _ in range(1)]
    runs = read_rounds([make_run("fedavg", momentless)])
    with pytest.raises(InputError, match="keep no second moment"):
        draw("variance", runs)
    with pytest.raises(InputError, match="run at least two"):
        draw("alignment", runs)
