"""The commands that measure a run, as they are typed."""

import json
import shutil

import pytest


def test_spectrum_of_a_run(finished_run, tmp_path, run_main):
    file = tmp_path / "new" / "spectrum.json"
    done = run_main("theory", "spectrum", str(finished_run), "--samples", "3", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "Gauss-Newton matrix, exact, 3 samples" in done.stdout
    facts = json.loads(file.read_text())
    assert len(facts["values"]) == 30
    assert facts["trace"] == pytest.approx(sum(facts["values"]))
    assert facts["largest"] == facts["values"][0] > facts["values"][9] > 0


def test_a_runs_first_weights_are_others_than_its_last(finished_run, tmp_path, run_main):
    largest = {}
    for at in ("start", "end"):
        file = tmp_path / f"{at}.json"
        assert (
            run_main(
                "theory", "spectrum", str(finished_run), "--at", at, "--samples", "2", "-q", "--json", str(file)
            ).returncode
            == 0
        )
        largest[at] = json.loads(file.read_text())["largest"]
    assert largest["start"] != pytest.approx(largest["end"], rel=1e-3)


def test_hessian_of_a_run_by_lanczos(finished_run, tmp_path, run_main):
    file = tmp_path / "hessian.json"
    given = ("--matrix", "hessian", "--samples", "4", "--steps", "3", "--probes", "2", "--json", str(file))
    done = run_main("theory", "spectrum", str(finished_run), *given)
    assert done.returncode == 0, done.stderr
    assert "Hessian, stochastic Lanczos, 4 samples" in done.stdout
    facts = json.loads(file.read_text())
    assert len(facts["values"]) == 6
    assert sum(facts["counts"]) == pytest.approx(facts["d"])


def test_blocks_of_a_run(finished_run, tmp_path, run_main):
    done = run_main(
        "theory",
        "blocks",
        str(finished_run),
        "--samples",
        "2",
        "--batches",
        "3",
        "--json",
        str(tmp_path / "blocks.json"),
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "blocks.json").read_text())
    heads = [row for row in facts["curvature"]["parameters"] if row["cut"] == "heads"]
    assert {row["kind"] for row in heads} == {"query", "key"}
    assert all(row["share"]["inside"] > row["share"]["shuffled"] for row in heads)
    v = facts["log_v"]
    assert v["batches"] == 3
    assert 1 > v["paper"]["share"] > v["tensor"]["share"] > v["tensor"]["chance"]
    assert "query" in done.stdout


@pytest.mark.slow
def test_figures_of_a_run(finished_run, tmp_path, run_main):
    for name, *arguments in (("spectrum",), ("blocks", "--batches", "2")):
        done = run_main("theory", name, str(finished_run), "--samples", "2", *arguments, "--out", str(tmp_path))
        assert done.returncode == 0, done.stderr
    names = [f"{stem}.{kind}" for stem in ("spectrum", "blocks", "blocks-maps") for kind in ("svg", "png")]
    assert {path.name for path in tmp_path.iterdir()} == {*names, "spectrum.json", "blocks.json"}
    assert all((tmp_path / name).stat().st_size > 10_000 for name in names)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["spectrum", "nowhere"], "nowhere holds no run (no config.yaml)"),
        (["drift", "nowhere"], "nowhere holds no run (no config.yaml)"),
        (["blocks", "RUN", "-s", "model.name=vit-tiny"], "model.name: would change the model"),
        (["variance", "RUN"], "has no diagnostics; run it with -s training.diagnostics=true"),
        (["spectrum", "RUN", "--json", "."], "--json .: is a folder; give a file"),
        (["blocks", "unfinished"], "unfinished: the run has no checkpoint yet"),
    ],
)
def test_errors_are_one_line(finished_run, tmp_path, monkeypatch, run_main, arguments, line):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, tmp_path / "unfinished")
    shutil.rmtree(tmp_path / "unfinished" / "checkpoint")
    done = run_main("theory", *(str(finished_run) if text == "RUN" else text for text in arguments))
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
