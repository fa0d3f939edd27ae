"""Real data and real models: the data beside the checkout, transformers' classes, local folders."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from support.checkout import SHARED, need
from support.image_sets import images
from support.sequences import batch_of

from fedadamw.data.image_task import ImageTask
from fedadamw.data.images import ImageSource, load_images
from fedadamw.models import vision
from fedadamw.models.pretrained import Pretrained
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load

SMALL = vision.ImageShape(size=32, channels=3, classes=10)
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["vit-mini", "vit-tiny", "swin-tiny", "resnet18"])
def test_every_model_takes_small_images_and_gives_gradients_to_all_it_trains(name):
    model = vision.build(name, SMALL).model
    task = ImageTask(images(), images(seed=1), device=CPU)
    task.losses(model, batch_of(task, np.arange(4))).mean().backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert missing == []


def test_the_sizes_are_the_papers():
    vit = vision.build("vit-tiny", SMALL).model
    assert 5.2e6 < sum(p.numel() for p in vit.parameters()) < 5.7e6
    assert vit.config.num_hidden_layers == 12
    assert vision.build("vit-tiny", SMALL, depth=6).model.config.num_hidden_layers == 6
    resnet = vision.build("resnet18", SMALL).model
    assert 11.1e6 < sum(p.numel() for p in resnet.parameters()) < 11.3e6
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in resnet.modules())
    with_batch_norm = vision.build("resnet18", SMALL, norm="batch").model
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in with_batch_norm.modules())
    hidden = resnet.resnet.embedder(torch.zeros(1, 3, 32, 32))
    assert hidden.shape == (1, 64, 32, 32), "a 3x3 stem that keeps 32 px"


def test_a_local_folder_with_another_number_of_classes_gets_a_fresh_head(tmp_path):
    saved = vision.build("vit-mini", vision.ImageShape(16, 3, 7)).model
    saved.save_pretrained(tmp_path)
    loaded = vision.build_pretrained(Pretrained(str(tmp_path)), SMALL)
    assert loaded.model.classifier.out_features == 10
    assert loaded.size == (16, 16)
    a = saved.vit.layers[0].attention.q_proj.weight
    assert torch.equal(a, loaded.model.vit.layers[0].attention.q_proj.weight), "and keeps the rest"
    grey = images(channels=1)
    task = ImageTask(grey, grey, device=CPU, inputs=loaded.processor.inputs, channels=3)
    inputs, _ = batch_of(task, np.arange(2))
    assert inputs.shape == (2, 3, 16, 16), "grey 32 px images are fitted to it"


def test_pickled_weights_are_refused_and_half_precision_is_loaded_as_float32(tmp_path):
    model = vision.build("vit-mini", SMALL).model.bfloat16()
    model.save_pretrained(tmp_path / "half")
    loaded = vision.build_pretrained(Pretrained(str(tmp_path / "half")), SMALL).model
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    (tmp_path / "pickled").mkdir()
    model.config.save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"could not be loaded: .*safetensors"):
        vision.build_pretrained(Pretrained(str(tmp_path / "pickled")), SMALL)
    (tmp_path / "half" / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="could not be loaded"):
        vision.build_pretrained(Pretrained(str(tmp_path / "half")), SMALL)


def test_the_folders_own_pixel_moments_are_used(tmp_path):
    vision.build("vit-mini", SMALL).model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}')
    built = vision.build_pretrained(Pretrained(str(tmp_path)), SMALL)
    assert built.processor.mean == (0.5, 0.4, 0.3)
    assert built.processor.std == (0.2, 0.2, 0.1)


def test_batches_are_normalised_and_test_time_is_deterministic():
    task = ImageTask(images(400), images(seed=1), device=CPU, crop_padding=4, flip=True)
    plain = ImageTask(images(400), images(seed=1), device=CPU)
    inputs, labels = batch_of(plain, np.arange(400))
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(inputs.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
    assert labels.tolist() == [i % 10 for i in range(400)]
    model = vision.build("vit-mini", SMALL).model.eval()
    with torch.no_grad():
        first, again, other = (t.score(t.outputs(model, 0, 40)) for t in (task, task, plain))
    assert first == again == other


def test_a_crop_is_a_window_of_the_padded_image():
    data = images(8)
    task = ImageTask(data, data, device=CPU, crop_padding=2, mean=(0, 0, 0), std=(1, 1, 1))
    inputs, _ = batch_of(task, np.arange(8), 3)
    offsets = set()
    for i in range(8):
        padded = np.pad(data.pixels[i] / 255, ((0, 0), (2, 2), (2, 2)))
        matches = [
            (r, c)
            for r in range(5)
            for c in range(5)
            if np.allclose(padded[:, r : r + 32, c : c + 32], inputs[i].numpy(), atol=1e-6)
        ]
        assert len(matches) == 1
        offsets.add(matches[0])
    assert len(offsets) > 3, "another window for each image"


def test_flips_are_about_half_and_follow_the_generator():
    data = images(200)
    task = ImageTask(data, data, device=CPU, flip=True, mean=(0, 0, 0), std=(1, 1, 1))
    first, _ = batch_of(task, np.arange(200), 1)
    again, _ = batch_of(task, np.arange(200), 1)
    assert torch.equal(first, again)
    plain = torch.from_numpy(data.pixels).float() / 255
    flipped = (first == plain.flip(-1)).flatten(1).all(1)
    assert 70 < int(flipped.sum()) < 130
    assert ((first == plain).flatten(1).all(1) | flipped).all()


@pytest.mark.slow
def test_cifar10_as_it_lies_on_disk():
    train, test = load_images(ImageSource(str(need(SHARED / "cifar10"))))
    assert train.pixels.shape == (50_000, 3, 32, 32)
    assert test.pixels.shape == (10_000, 3, 32, 32)
    assert train.classes[0] == "airplane"
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert (train.fingerprint, test.fingerprint) == ("41dd134238b10695", "1c813cd29c9c9bce"), "as of earlier versions"


def test_images_are_decoded_once_and_a_damaged_cache_is_not_believed(tmp_path, monkeypatch):
    import datasets
    from PIL import Image

    from fedadamw.data import pixel_cache

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            Image.effect_noise((8, 8), 50).save(folder / "0.png")
    first, _ = load_images(ImageSource(str(tmp_path / "images")))
    decoded, decode = [], pixel_cache.decode_images
    monkeypatch.setattr(pixel_cache, "decode_images", lambda *args: decoded.append(args) or decode(*args))
    again, _ = load_images(ImageSource(str(tmp_path / "images")))
    assert again.fingerprint == first.fingerprint
    assert decoded == []
    caches = list((tmp_path / "cache").rglob("*.npy"))
    assert len(caches) == 2
    for cache in (tmp_path / "cache" / "fedadamw-pixels").iterdir():
        cache.write_bytes(b"torn")
    again, _ = load_images(ImageSource(str(tmp_path / "images")))
    assert again.fingerprint == first.fingerprint
    assert len(decoded) == 2
    assert isinstance(again.pixels, np.memmap)
    monkeypatch.setattr(pixel_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    shutil.rmtree(tmp_path / "cache" / "fedadamw-pixels")
    again, _ = load_images(ImageSource(str(tmp_path / "images")))
    assert again.fingerprint == first.fingerprint, "in memory, where the disk is full"


def parquet(tmp_path, **columns):
    import datasets

    for split in ("train", "test"):
        datasets.Dataset.from_dict(columns).to_parquet(str(tmp_path / f"{split}-00000.parquet"))
    return str(tmp_path)


def test_wrong_columns_and_splits_are_one_line(tmp_path):
    folder = parquet(tmp_path, words=["a", "b"], number=[1, 2])
    with pytest.raises(ValueError, match=r"no image column found among words, number; name it with data\.image_column"):
        load_images(ImageSource(folder))
    with pytest.raises(ValueError, match="has no column 'pixels'; it has words, number"):
        load_images(ImageSource(folder, image_column="pixels"))
    with pytest.raises(ValueError, match="no split named holdout; it has train, test"):
        load_images(ImageSource(folder, test_split="holdout"))
    (tmp_path / "test-00000.parquet").unlink()
    with pytest.raises(ValueError, match=r"or hold out some training samples with data\.validation"):
        load_images(ImageSource(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="could not be read"):
        load_images(ImageSource(str(tmp_path / "empty")))


def test_natural_clients_from_a_column(tmp_path):
    import datasets
    from PIL import Image

    for split in ("train", "test"):
        rows = {
            "image": [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(12)],
            "label": ["yes", "no"] * 6,
            "writer": ["ann", "bob", "cy"] * 4,
        }
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.Value("string"), "writer": datasets.Value("string")}
        )
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / f"{split}-00000.parquet"))
    settings = [f"data.source={tmp_path}", "partition.kind=column", "partition.column=writer"]
    experiment = load(
        "digits", [*settings, "training.clients_per_round=2", "training.rounds=1", "model.name=vit-micro"]
    )
    prepared = prepare(experiment)
    assert prepared.train.classes == ("no", "yes")
    assert prepared.partition.sizes.tolist() == [4, 4, 4]
    assert prepared.simulation().step().clients == 2


@pytest.mark.slow
def test_tiny_imagenet_trains_a_round():
    need(SHARED / "tiny-imagenet-32")
    settings = [f"data.source={SHARED / 'tiny-imagenet-32'}", "data.max_train=2000", "data.max_test=200"]
    quick = ["training.rounds=1", "training.clients_per_round=2", "training.steps=2", "partition.concentration=0.1"]
    prepared = prepare(load("cifar10-small", [*settings, *quick]))
    record = prepared.simulation().step()
    assert len(prepared.train.classes) == 200
    assert np.isfinite(record.test_loss)


def test_held_out_training_samples_take_the_place_of_the_test_set():
    from fedadamw.prepare.samples import load_samples

    train, test = load_samples(load("digits", ["data.validation=0.25"]))
    whole, _ = load_samples(load("digits"))
    assert len(train) + len(test) == len(whole)
    rows = {row.tobytes() for row in train.pixels}
    assert not any(row.tobytes() in rows for row in test.pixels)


def test_what_fedadamw_sends_of_vit_tiny_against_fedavg():
    from fedadamw.algorithms import registry
    from fedadamw.blocks.blocks import Blocks
    from fedadamw.vector import Layout, nbytes, trainable

    model = vision.build("vit-tiny", vision.ImageShape(32, 3, 10)).model
    x = Layout.of(model).flatten(trainable(model))

    def sent(name, **settings):
        algorithm = registry.make(name, registry.validate(name, settings), Blocks.of(model))
        down = algorithm.broadcast(algorithm.server_init(x))
        local = algorithm.client_step(algorithm.client_start(down, ()), down, torch.ones_like(x), x.new_tensor(0.1))
        return nbytes(algorithm.client_finish(local, down, x.new_tensor(0.1))[0])

    fedavg = sent("fedavg")
    assert sent("fedadamw", share="mean-v") <= 1.005 * fedavg
    assert sent("fedadamw", share="v") == 2 * fedavg + 4


def test_the_digits_are_scikit_learns():
    whole = load_digits()
    train, test = load_images(ImageSource("digits"))
    assert len(train) + len(test) == len(whole.target)
    numbers = np.arange(len(whole.target))
    for part, wanted in ((train, numbers % 5 != 0), (test, numbers % 5 == 0)):
        assert np.array_equal(part.labels, whole.target[wanted])
        assert np.array_equal(part.pixels[:, 0], (whole.images[wanted] * (255 / 16)).round())
