"""Pictures of simulated devices: charts by round, a timeline of a minute, and a page that lets the reader choose."""

import json
import re
from collections.abc import Iterator

import numpy as np
import pytest
from support.studies import MANIFEST, rounds
from support.virtual_runs import job, record, write_run

from fedadamw.report.device_charts import jobs_chart, round_charts, staleness_chart, work_chart
from fedadamw.report.devices_section import device_charts, draw_along, summarize_devices
from fedadamw.report.jobs import read_jobs
from fedadamw.report.run_charts import score_chart, to_spec
from fedadamw.report.run_page import RunPage
from fedadamw.report.timeline import choose_window, timeline_chart
from fedadamw.report.virtual_time import choose_unit, format_virtual
from fedadamw.settings.load import load

STALE = {"staleness_mean": 0.5, "staleness_max": 1}
RECORDS = [record(i, 20.0 * i, 0.1 * i, lost=i % 2, **STALE) for i in range(1, 11)]  # 200 seconds
SHARES = {"laptop": 0.5, "phone": 0.5}
JOBS = [job(0, 3, 10, 69), job(1, 1, 60, 80), job(2, 1, 85, 95, "lost"), job(3, 2, 75, 131, staleness=2)]
JOBS.append(job(4, 0, 140, 150))


def rows(chart) -> list[dict]:
    return chart.to_dict()["data"]["values"]


def tables_of(part) -> Iterator[list[dict]]:
    """The rows of all layers that have their own."""
    for name, inner in part.items() if isinstance(part, dict) else enumerate(part):
        if name == "data" and "values" in inner:
            yield inner["values"]
        elif isinstance(inner, dict | list):
            yield from tables_of(inner)


def test_times_have_three_digits_in_the_unit_that_suits_them():
    given = [0.0, 12.345, 179, 180, 3600, 4 * 3600, 10 * 86400]
    assert [format_virtual(s) for s in given] == ["0 s", "12.3 s", "179 s", "3 min", "60 min", "4 h", "10 days"]
    assert choose_unit(7200).title() == "virtual time, minutes"


def test_a_score_is_drawn_along_virtual_time_and_bytes():
    drawn = rows(score_chart(RECORDS, by="virtual"))
    assert [row["virtual"] for row in drawn[:2]] == [pytest.approx(1 / 3, abs=1e-6), pytest.approx(2 / 3, abs=1e-6)]
    assert [row["sent"] for row in drawn[:2]] == [1.0, 2.0]
    assert list(draw_along(RECORDS)) == ["virtual time", "version", "bytes sent"]
    titles = [spec["layer"][0]["encoding"]["x"]["title"] for spec in draw_along(RECORDS).values()]
    assert titles == ["virtual time, minutes", "version", "MB sent up by all clients"]
    of_nodes = [{**one, "federation": {"answered": 2}} for one in RECORDS]
    assert list(draw_along(of_nodes)) == ["time", "version", "bytes sent"], "which is real"
    assert "virtual time" not in dict(summarize_devices(of_nodes))


def test_ends_of_jobs_are_stacked_and_work_adds_up_over_the_rounds():
    ends = rows(jobs_chart(RECORDS))
    assert [(r["of"], r["low"], r["high"]) for r in ends if r["round"] == 1] == [("counted", 0, 2), ("lost", 2, 3)]
    changed = [*RECORDS[:1], record(2, 40.0, work={"laptop": 50, "phone": 0})]
    area, ends = tables_of(work_chart(changed, SHARES).to_dict())
    assert [r["high"] for r in area] == pytest.approx([1 / 3, 1.0, 6 / 8, 1.0]), "of laptop 10 of 30, then 60 of 80"
    assert ends == [{"low": 0.5}], "half of the devices"
    assert "layer" not in work_chart(changed, {}).to_dict(), "shares that are not known"


def test_only_versions_have_staleness_and_only_classes_share_work():
    assert list(round_charts(RECORDS, SHARES)) == ["staleness", "idle", "work", "jobs"]
    assert rows(staleness_chart(RECORDS))[0] == {"round": 1, "mean": 0.5, "largest": 1}
    synchronous = [record(i, 5.0 * i, work={"all": 10}) for i in (1, 2)]
    assert list(round_charts(synchronous, {})) == ["idle", "jobs"]
    cards = dict(summarize_devices(RECORDS))
    assert (cards["virtual time"], cards["mean staleness"]) == ("3.33 min", "0.50")
    assert (cards["of the devices' time idle"], cards["jobs that did not count"]) == ("25%", "5 of 25")


def test_the_window_is_a_minute_unless_rounds_take_much_longer_or_shorter():
    assert choose_window(RECORDS, latest=False) == (70.0, 130.0)
    assert choose_window(RECORDS, latest=True) == (140.0, 200.0)
    hours = [record(i, 3600.0 * i) for i in range(1, 101)]
    begin, end = choose_window(hours, latest=False)
    assert end - begin == 4 * 3600.0 or end - begin == 8 * 3600.0
    short = [record(1, 3.0), record(2, 6.0)]
    assert choose_window(short, latest=False) == (0.0, 6.0), "a whole run"


def test_a_timeline_has_the_jobs_of_its_minute_cut_at_its_ends(tmp_path):
    write_run(tmp_path, RECORDS, JOBS)
    spec = timeline_chart(tmp_path, RECORDS, {2: "clinic"}).to_dict()
    assert spec["title"]["text"] == "One minute of the federation"
    assert spec["title"]["subtitle"][0] == "from 70 s on; 2 devices at work, fastest first"
    tables = list(tables_of(spec))
    lines = next(table for table in tables if "device" not in table[0])
    bars = next(table for table in tables if "device" in table[0])
    assert [line["begin"] for line in lines] == [10.0, 30.0, 50.0], "versions 4, 5 and 6"
    shown = [(bar["device"], bar["begin"], bar["end"], bar["of"]) for bar in bars]
    assert shown == [
        ("client 1", 0.0, 10.0, "counted"),
        ("client 1", 15.0, 25.0, "lost"),
        ("clinic", 5.0, 60.0, "counted"),
    ]
    assert bars[2]["seconds"] == 56.0, "not cut"


def test_a_window_of_a_long_file_is_found_without_reading_the_rest(tmp_path):
    path, rng = tmp_path / "jobs.jsonl", np.random.default_rng(0)
    starts = np.sort(rng.uniform(0, 20_000, 20_000))
    jobs = sorted(
        (job(i, i % 97, s, s + rng.exponential(3)) for i, s in enumerate(starts)), key=lambda j: j["finish_s"]
    )
    lines = [json.dumps(line) for line in jobs]
    lines[10_000] = lines[10_000][:40]  # as after a power cut
    path.write_text("\n".join(lines) + "\n")
    for begin in (0.0, 9_990.0, 19_950.0):
        wanted = [(j["client"], j["start_s"]) for i, j in enumerate(jobs) if i != 10_000]
        inside = {(j["client"], j["start_s"]) for j in jobs if j["finish_s"] > begin and j["start_s"] < begin + 60}
        found = [(j.client, j.start_s) for j in read_jobs(path, begin, begin + 60)]
        assert found == [pair for pair in wanted if pair in inside]
    assert read_jobs(tmp_path / "none", 0.0, 1.0) == []


def page_of(folder, records) -> str:
    settings = load("digits", ["devices.classes={laptop: {share: 0.5}, phone: {share: 0.5}}"]).model_dump(mode="json")
    return RunPage(folder, settings, MANIFEST, np.zeros((0, 0), int), ()).render(records)


def test_a_page_has_the_section_only_for_a_run_with_a_clock(tmp_path):
    write_run(tmp_path, RECORDS, JOBS)
    page = page_of(tmp_path, RECORDS)
    specs = json.loads(re.search(r'id="specs">(.*?)</script>', page, re.DOTALL)[1])
    assert "<h2>Devices</h2>" in page
    assert all(f"id={name}>" in page for name in ("timeline", "staleness", "idle", "work", "jobs"))
    assert {"timeline", "staleness", "idle", "work", "jobs"} <= specs["charts"].keys()
    assert list(specs["along"]) == ["virtual time", "version", "bytes sent"]
    plain = [vars(one) for one in rounds()]
    plain = [{k: v for k, v in one.items() if v is not None or k.startswith("test")} for one in plain]
    before = page_of(tmp_path / "before", plain)
    assert "<h2>Devices</h2>" not in before
    assert json.loads(re.search(r'id="specs">(.*?)</script>', before, re.DOTALL)[1])["along"] == {}
    assert device_charts(tmp_path, plain, {}, {}) == {}


def test_the_reader_chooses_what_the_score_is_drawn_along(chromium, tmp_path):
    write_run(tmp_path, RECORDS, JOBS)
    (tmp_path / "report.html").write_text(page_of(tmp_path, RECORDS))
    page = chromium.new_context(offline=True).new_page()
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri(), wait_until="commit")
    page.wait_for_function("document.querySelector('#score canvas, #score svg.marks')", timeout=60_000)
    pressed = page.locator(".along [aria-pressed=true]")
    assert pressed.inner_text() == "virtual time"
    page.get_by_role("button", name="bytes sent").click()
    assert pressed.inner_text() == "bytes sent"
    assert said == []


def test_pictures_of_a_run_can_be_drawn(tmp_path):
    write_run(tmp_path, RECORDS, JOBS)
    charts = device_charts(tmp_path, RECORDS, {"devices": {"classes": {"laptop": {"share": 1.0}}}}, {}, width=300)
    assert list(charts) == ["timeline", "staleness", "idle", "work", "jobs"]
    assert all(to_spec(chart)["width"] == 300 for _, chart in charts.values())
