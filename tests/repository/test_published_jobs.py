"""The jobs that others published: their models, partitions and files, each run for a few rounds."""

import argparse
import json
import sys

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Picture

from benchmarks.common import records
from benchmarks.common.processes import run_again
from benchmarks.measure import published
from benchmarks.measure.published_jobs import cifar10, femnist
from benchmarks.measure.published_jobs.jobs import ALGORITHMS, JOBS
from benchmarks.measure.published_jobs.models import FluteCNN, pfl_cnn
from fedadamw.validation import InputError

SIZES = {"anna": 20, "bert": 8, "carl": 30}  # images of each writer


def picture(generator, side, channels):
    pixels = generator.integers(0, 256, (side, side, channels), dtype=np.uint8)
    return Picture.fromarray(pixels if channels > 1 else pixels[:, :, 0])


@pytest.fixture(scope="module")
def small_cifar10(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar10")
    generator = np.random.default_rng(0)
    kinds = Features({"img": Image(), "label": ClassLabel(names=list("abcdefghij"))})
    for split, count in (("train", 200), ("test", 20)):
        rows = {"img": [picture(generator, 32, 3) for _ in range(count)], "label": [i % 10 for i in range(count)]}
        Dataset.from_dict(rows, features=kinds).to_parquet(folder / f"{split}-00000.parquet")
    return folder


def leaf_users(sizes):
    generator = np.random.default_rng(1)
    data = {
        name: {"x": generator.random((n, 784)).round(3).tolist(), "y": generator.integers(0, 62, n).tolist()}
        for name, n in sizes.items()
    }
    return {"users": list(sizes), "num_samples": list(sizes.values()), "user_data": data}


@pytest.fixture
def leaf(tmp_path):
    """LEAF's files, all data in two of them."""
    users = list(SIZES)
    for i, names in enumerate((users[:1], users[1:])):
        (tmp_path / f"all_data_{i}.json").write_text(json.dumps(leaf_users({name: SIZES[name] for name in names})))
    return tmp_path


def options(**given):
    return argparse.Namespace(
        **{"small": True, "rounds": None, "stack": None, "precision": "float32", "device": "cpu", **given}
    )


def test_the_models_have_the_sizes_that_their_authors_give():
    count = {model: sum(p.numel() for p in model().parameters()) for model in (pfl_cnn, FluteCNN)}
    dense = 12 * 12 * 64 * 128 + 128
    assert count[FluteCNN] == 320 + 18_496 + dense + 128 * 62 + 62, "FLUTE's summary, with 62 classes"
    assert 320 + 18_496 + dense + 1_290 == 1_199_882, "FLUTE's summary, with 10"
    assert count[pfl_cnn] == 32 * 27 + 32 + 18_496 + 14 * 14 * 64 * 128 + 128 + 1_290
    assert FluteCNN().eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 62)
    assert pfl_cnn().eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_the_settings_are_the_published_ones():
    of = {name: (j.rounds, j.clients_per_round, j.batch_size, j.lr, j.evaluate_every) for name, j in JOBS.items()}
    assert of["cifar10-iid"] == (1500, 50, 10, 0.1, 10)
    assert of["cifar10-dirichlet"] == (3000, 50, 10, 0.1, 10)
    assert of["femnist"] == (800, 10, 20, 0.1, 50)
    assert {job.epochs for job in JOBS.values()} == {1}


@pytest.mark.parametrize("concentration", [None, 0.1])
def test_cifar10_is_normalised_and_divided_into_clients_of_50(concentration, small_cifar10):
    data = cifar10.load(str(small_cifar10), concentration=concentration)
    inputs, labels = data.train
    assert inputs.shape == (200, 3, 32, 32)
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(inputs.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)
    assert [len(client) for client in data.clients] == [50] * 4
    assert len(np.unique(np.concatenate(list(data.clients)))) == 200
    kinds = [len(labels[client].unique()) for client in data.clients]
    assert (min(kinds) == 10) == (concentration is None)
    assert len(data.test[1]) == 20


def check_writers(data, sizes, held_out):
    assert sorted(len(client) for client in data.clients) == sorted(sizes)
    assert len(data.test[1]) == held_out
    assert data.train[0].shape == (sum(sizes), 1, 28, 28)
    assert 0 <= data.train[0].min() <= data.train[0].max() <= 1
    assert len(np.unique(np.concatenate(list(data.clients)))) == sum(sizes)


def test_leafs_files_are_read_and_a_tenth_of_each_writer_held_out(leaf):
    data = femnist.load(str(leaf))
    check_writers(data, [18, 8, 27], 5)
    written = json.loads((leaf / "all_data_0.json").read_text())["user_data"]["anna"]
    mine = next(client for client in data.clients if len(client) == 18)
    assert sum(data.train[1][mine].tolist()) <= sum(written["y"])
    first = data.train[0][mine[0]].flatten()
    assert any(torch.allclose(first, torch.tensor(x)) for x in written["x"]), "anna's image is anna's"


def test_leafs_own_split_is_kept(tmp_path):
    for split, sizes in (("train", SIZES), ("test", {"anna": 2, "bert": 1})):
        (tmp_path / split).mkdir()
        (tmp_path / split / "all_data_0_keep_0.json").write_text(json.dumps(leaf_users(sizes)))
    check_writers(femnist.load(str(tmp_path)), [20, 8, 30], 3)


def test_the_hubs_parquet_files_are_read(tmp_path):
    generator = np.random.default_rng(2)
    kinds = Features(
        {"image": Image(), "writer_id": Value("string"), "hsf_id": Value("int64"), "character": ClassLabel(62)}
    )
    writers = [name for name, n in SIZES.items() for _ in range(n)]
    rows = {"image": [picture(generator, 28, 1) for _ in writers], "writer_id": writers, "hsf_id": [0] * len(writers)}
    rows["character"] = generator.integers(0, 62, len(writers)).tolist()
    DatasetDict({"train": Dataset.from_dict(rows, features=kinds)})["train"].to_parquet(
        tmp_path / "train-00000.parquet"
    )
    check_writers(femnist.load(str(tmp_path)), [18, 8, 27], 5)


def test_tensorflow_federateds_files_are_read(tmp_path):
    h5py = pytest.importorskip("h5py", reason="fed_emnist is HDF5, which h5py reads")
    for name, sizes in zip(femnist.H5, (SIZES, {"anna": 2}), strict=True):
        with h5py.File(tmp_path / name, "w") as file:
            for user, n in sizes.items():
                file[f"examples/{user}/pixels"] = np.full((n, 28, 28), 0.5, np.float32)
                file[f"examples/{user}/label"] = np.arange(n) % 62
    check_writers(femnist.load(str(tmp_path)), [20, 8, 30], 2)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[1]", "is not a JSON file of LEAF's"),
        ('{"user_data": {"anna": {"x": [[1, 2]], "y": [1]}}}', "writer anna has images that are not 28 x 28"),
        (json.dumps({"user_data": {"anna": {"x": [[0] * 784], "y": [62]}}}), "writer anna has classes beyond 62"),
        ('{"user_data": {}}', "has no writers"),
    ],
)
def test_a_wrong_file_is_an_error_in_one_line(content, why, tmp_path):
    (tmp_path / "all_data_0.json").write_text(content)
    with pytest.raises(InputError, match=why) as error:
        femnist.load(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_femnist_runs(algorithm, leaf):
    result = published.measure("femnist", algorithm, str(leaf), options())
    assert result["parameters"] == 1_206_590
    assert result["rounds"] == [2, 3]
    assert result["clients"] == 3
    assert all(0 <= score <= 1 for score in result["accuracy"])
    assert result["settings"]["settings"]["training.weighting"] == "samples"
    json.dumps(result)


def test_cifar10_runs(small_cifar10):
    result = published.measure("cifar10-dirichlet", "fedavg", str(small_cifar10), options(rounds=1))
    assert (result["parameters"], result["rounds"]) == (1_626_442, [1])


def test_a_job_that_fails_is_reported_and_the_others_go_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(records, "SCRATCH", tmp_path)
    ran = []

    def run_again(_file, arguments, limit_s):
        ran.append(tuple(arguments[-2:]))
        if "fedavg" in arguments:
            raise SystemExit(f"module {' '.join(arguments)}: CUDA error:\nan illegal memory access")
        return {"total_s": 1.0, "accuracy": [0.5], "rounds": [3]}

    monkeypatch.setattr(published, "run_again", run_again)
    monkeypatch.setattr(sys, "argv", ["published", "--small"])
    with pytest.raises(SystemExit) as ended:
        published.main()
    assert ended.value.code == 1
    assert ran == [(job, algorithm) for job in JOBS for algorithm in ALGORITHMS]
    (path,) = tmp_path.iterdir()
    found = json.loads(path.read_text())["jobs"]["femnist"]["algorithms"]
    assert found["fedavg"] == {"failed": "an illegal memory access"}
    assert found["fedadamw"]["accuracy"] == [0.5]
    assert "failed: an illegal memory access" in capsys.readouterr().out


def test_without_a_gpu_it_says_so_at_once(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["published", "--device", "cuda"])
    with pytest.raises(SystemExit):
        published.main()
    assert "torch sees no GPU here" in capsys.readouterr().err


def test_a_run_that_hangs_is_given_up(tmp_path):
    with pytest.raises(SystemExit, match=r"took longer than 0\.01 s"):
        run_again(published.__file__, ["--help"], limit_s=0.01)


def test_missing_data_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no such folder"):
        published.measure("femnist", "fedavg", str(tmp_path / "none"), options())
