"""Nodes with privacy of samples and data of their own: nothing of these reaches the server in words or sums."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("flwr", reason="Flower needs Python 3.11")
pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")

from support import tiny_models
from support.federated import COMMON, federated, read_events
from support.grids import LocalGrid
from support.private_nodes import EVERYONE, NOISE, answer, charges, meet, requests_of, with_settings

from fedadamw.flower.node.local_data import load_node_samples
from fedadamw.prepare.problem import open_pretrained
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load
from fedadamw.validation import InputError

pytestmark = pytest.mark.usefixtures("restore_threads")


def of_images(tmp_path, *more, **classes):
    """Return a federation whose nodes have images of their own, of classes a and b unless `_1=("a", "c")` says else."""
    grid = LocalGrid(3, tmp_path / "state")
    for i in range(3):
        for name in classes.get(f"_{i}", ("a", "b")):
            folder = tmp_path / f"data-{i}" / name
            folder.mkdir(parents=True)
            for j in range(4):
                pixels = np.random.default_rng([i, j]).integers(0, 255, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{j}.png")
        grid.configs[100 + i] |= {"data": str(tmp_path / f"data-{i}"), "state-dir": str(tmp_path / f"state-{i}")}
    data = "data={task: image, classes: [a, b], image_size: 8, image_mode: grey}"
    return federated(tmp_path, [data, "partition.kind=nodes", *EVERYONE, *more], grid)


MOMENTS = ["data.mean=[0.5]", "data.std=[0.3]"]


def test_an_epsilon_for_nodes_of_unknown_sizes_is_refused(tmp_path):
    with pytest.raises(InputError, match="numbers of samples are not known; give privacy.noise_multiplier"):
        of_images(tmp_path, *MOMENTS, "privacy.epsilon=3")


def test_a_budget_that_the_server_cannot_see_to_is_refused(tmp_path):
    with pytest.raises(InputError, match="only nodes know their samples; have nodes set privacy-epsilon"):
        of_images(tmp_path, *MOMENTS, NOISE, "privacy.budget=3")


def test_a_text_is_one_sample_however_the_server_cuts_it(tmp_path, capsys):
    place, path = tiny_models.folder(tmp_path / "gpt2", "gpt2"), tmp_path / "long.csv"
    path.write_text("text\n" + "\n".join(["good film " * 40] * 6) + "\n")
    given = ["data={task: causal-lm, classes: [], text_column: text, max_length: 32}", f"model={place}"]
    given += ["partition={kind: nodes, clients: 3}", *EVERYONE, "training.group_by_length=false"]
    config, found = {"partition-id": 0, "data": str(path)}, []
    for more in ([], [NOISE]):
        experiment = load("digits", [*COMMON, *given, *more])
        facts = prepare(experiment, remote=True).facts
        loaded = load_node_samples(experiment, open_pretrained(experiment), facts, config, 0)
        found.append(loaded.train.rows[loaded.own].tolist())
    pieces, kept = found
    assert len(pieces) > 6
    assert kept == sorted(set(pieces)) == list(range(6))
    assert f"the first is trained on, 6 of {len(pieces)}" in capsys.readouterr().err


def test_the_server_asks_for_no_sums_of_pixels(tmp_path):
    with pytest.raises(InputError, match="data.mean is not set, so that nodes would send sums of their pixels"):
        of_images(tmp_path, NOISE)


@pytest.mark.slow
def test_a_node_tells_no_sums_of_pixels_whoever_asks(tmp_path):
    ours, grid = of_images(tmp_path, *MOMENTS, NOISE)
    meet(ours, 3)
    request, _ = requests_of(grid, "hello")[0]
    about = {key: value for key, value in json.loads(request["about"]).items() if key not in ("mean", "std")}
    asked = with_settings((request, {}), lambda raw: raw["data"].update(mean=None, std=None))
    config = {"data": grid.configs[100]["data"]}
    numbers, arrays = answer(asked, tmp_path / "state", config=config, about=json.dumps(about))
    assert numbers == {"declined": "it tells no sums of its pixels: give data.mean and data.std"}
    assert arrays == {}


def test_a_node_names_none_of_its_classes(tmp_path, capsys):
    ours, _ = of_images(tmp_path, *MOMENTS, NOISE, "federation.wait_for=2", _1=("a", "SECRET"))
    meet(ours, 2)
    assert ours.step().federation == {"asked": 2, "answered": 2}
    (event,) = read_events(tmp_path, "stranger")
    assert event["reason"] == "other-data"
    assert event["detail"] == "client 1: its data do not fit the run, or cannot be read; its log says more"
    assert "SECRET" in capsys.readouterr().err
    assert "SECRET" not in (tmp_path / "run/events.jsonl").read_text()
    assert charges(tmp_path / "state-1") == []
    assert [charge.rate for charge in charges(tmp_path / "state-0")] == [1.0]  # 8 samples, batches of 20
