"""Charts of results: SVG that needs nothing from elsewhere, and files."""

import xml.etree.ElementTree as ET

import pytest
import torch
from support.own_objects import CLIENTS, points, simulate

import fedadamw
from fedadamw.api.result import Comparison
from fedadamw.study.plan import plan
from fedadamw.study.results import collect_results
from fedadamw.validation import InputError

FEW = [("training.rounds", 2), ("training.clients_per_round", 2), ("training.steps", 1), ("partition.clients", 10)]
FEW += [("model.name", "vit-nano"), ("threads", 1), ("training.evaluate_every", 1), ("training.diagnostics", True)]


@pytest.fixture(scope="module")
def result():
    return simulate()


def texts(picture) -> list[str]:
    """What an SVG says."""
    return [text for text in ET.fromstring(picture._repr_svg_()).itertext() if text.strip()]


def test_a_result_draws_its_score_and_its_losses(result):
    assert {"Test accuracy", "round"} <= set(texts(result.plot()))
    assert result.plot()._repr_svg_() == result.plot("score")._repr_svg_()
    assert {"Loss", "test loss"} <= set(texts(result.plot("loss")))
    drawn = result.plot().chart.to_dict()["data"]["values"]
    assert [row["score"] for row in drawn] == [record.test_metrics["accuracy"] for record in result.records]


def test_without_metrics_it_draws_the_losses():
    result = simulate(metrics=None)
    assert "test loss" in texts(result.plot())
    with pytest.raises(InputError, match="plot='score' is unknown; use one of loss"):
        result.plot("score")


def test_a_picture_holds_no_link_and_no_script(result):
    svg = result.plot()._repr_svg_()
    assert "<script" not in svg
    assert "href=" not in svg


@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_it_is_saved(result, suffix, start, tmp_path):
    path = result.plot().save(tmp_path / "new" / f"score.{suffix}")
    assert path.read_bytes().startswith(start)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_another_suffix_is_refused(result, tmp_path):
    with pytest.raises(InputError, match=r"score.jpg: must end in .svg, .png or .pdf"):
        result.plot().save(tmp_path / "score.jpg")


def test_a_partition_shows_who_has_what():
    labels = points()[1][:200]
    picture = fedadamw.partition.plot(CLIENTS, labels, ["north", "east", "south", "west"])
    assert {"Who holds what", "north", "west", "8 clients, 4 classes"} <= set(texts(picture))
    rows = picture.chart.to_dict()["data"]["values"]
    for client, part in enumerate(CLIENTS):
        counts = torch.bincount(labels[list(part)], minlength=4)
        of_client = {row["class"]: row["samples"] for row in rows if row["client"] == client}
        assert [of_client.get(name, 0) for name in ("north", "east", "south", "west")] == counts.tolist()


def test_too_few_names_of_classes_are_refused():
    with pytest.raises(InputError, match="classes: 1 names, but labels go up to 3"):
        fedadamw.partition.plot(CLIENTS, points()[1][:200], ["one"])


def test_a_result_from_python_objects_is_not_exported(result, tmp_path):
    with pytest.raises(InputError, match="objects of the script that called fedadamw.simulate"):
        result.export(tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.slow
def test_a_comparison_draws_curves_with_intervals_and_diagnostics(tmp_path):
    runs = plan("digits", ["fedadamw", "fedavg"], [0, 1], FEW, tmp_path)
    for run in runs:
        fedadamw.run(run.experiment, out=run.folder.path, quiet=True)
    study = Comparison(collect_results("digits", runs), tmp_path)
    assert {"Test accuracy by round", "fedadamw", "fedavg"} <= set(texts(study.plot()))
    bands = [row for row in study.plot().chart.to_dict()["data"]["values"] if "low" in row]
    assert {(row["variant"], row["round"]) for row in bands} == {(v, r) for v in ("fedadamw", "fedavg") for r in (1, 2)}
    for what in ("bytes", "final", "drift", "cosine", "v_dispersion"):
        assert "fedadamw" in texts(study.plot(what))
    with pytest.raises(InputError, match="plot='value' is unknown; use one of score, bytes, train, test, final"):
        study.plot("value")
