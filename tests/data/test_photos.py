"""Photos of every kind train a model, and the exported model sees the same pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import image_files
from support.image_files import GREEN, RED, noise

from fedadamw.prepare import images as problem
from fedadamw.prepare.problem import open_pretrained
from fedadamw.settings.load import load

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def photos(place: Path) -> str:
    """What a phone and a scanner leave: two classes of each kind of picture, and one that is cut short."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "test"):
        for name, colour in (("a-red", RED), ("b-green", GREEN)):
            folder = place / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (120, 80), colour).save(folder / "0-landscape.jpg", quality=95)
            Image.new("RGB", (70, 100), colour).save(folder / "1-portrait.png")
            Image.new("L", (90, 90), colour[0]).save(folder / "2-grey.png")
            Image.new("RGBA", (90, 80), (*colour, 255)).save(folder / "3-rgba.png")
            Image.new("RGB", (90, 80), colour).convert("CMYK").save(folder / "4-cmyk.jpg", quality=95)
            Image.frombytes("I;16", (80, 70), (257 * colour[0]).to_bytes(2, "little") * 5600).save(folder / "5-16.png")
            turned = Image.new("RGB", (100, 200), (0, 0, 0))
            turned.paste(colour, (0, 80, 100, 200))  # dark above; once turned, on the right
            turned.save(folder / "6-turned.jpg", exif=exif, quality=95)
    (place / "train/b-green/7-short.jpg").write_bytes(image_files.truncated(noise(90, 90), "JPEG"))
    return str(place)


def expected(colour: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """The colour of each of a class's photos, in the order of their files."""
    grey = (colour[0],) * 3
    return [colour, colour, grey, colour, colour, grey, colour]


@pytest.mark.filterwarnings("ignore:.*cannot be used:UserWarning")
def test_photos_train_a_hub_model_and_a_built_in_one(tmp_path):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from fedadamw.runner.execute import execute
    from fedadamw.runner.folder import RunFolder
    from fedadamw.trained.evaluate import evaluate
    from fedadamw.trained.export import export
    from fedadamw.trained.load import open_run, open_trained

    source = photos(tmp_path / "photos")
    own = {"image_processor_type": "ViTImageProcessor", "size": 64, "resample": 3}
    hub = image_files.vit(
        tmp_path / "hub", {**own, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.2]}, side=64
    )
    for model in ("vit-nano", hub):
        settings = [f"data.source={source}", f"model.name={model}", "data.image_size=64", "data.on_bad=skip"]
        more = ["training={rounds: 1, clients_per_round: 2, steps: 2, batch_size: 4, lr: 0.01}", "device=cpu"]
        experiment = load("digits", [*settings, "partition={kind: iid, clients: 2}", *more])
        folder = RunFolder(tmp_path / f"run-{Path(model).name}")
        execute(experiment, folder, resume=False, report=False)
        train, test = problem.load(experiment, open_pretrained(experiment))
        assert train.pixels.shape == test.pixels.shape == (14, 3, 64, 64)
        for found in (train, test):
            colours = found.pixels[:, :, 32, 32].astype(int)
            assert np.abs(colours - np.array(expected(RED) + expected(GREEN))).max() <= 4
            assert np.ptp(found.pixels[:6].reshape(6, 3, -1).astype(int), axis=2).max() <= 4, "one colour all over"
        assert train.pixels[6, :, 32, 60].max() <= 8, "the dark side of the turned one"
        assert folder.read_manifest()["data"]["skipped"] == [1, 0]
        out = tmp_path / f"out-{Path(model).name}"
        trained = open_run(folder.path)
        export(trained, out)
        again, count = evaluate(open_trained(out, []))
        assert count == 14
        assert again.loss == pytest.approx(folder.records()[-1]["test_loss"], abs=1e-5)
        with Image.open(tmp_path / "photos/test/a-red/0-landscape.jpg") as raw:
            inputs = AutoImageProcessor.from_pretrained(out, backend="pil")(raw, return_tensors="pt")
        _, task, _ = problem.build(experiment, open_pretrained(experiment), train, test, CPU)
        torch.testing.assert_close(inputs["pixel_values"][0], task._inputs(task.test_pixels[:1])[0], rtol=0, atol=1e-6)
        exported = AutoModelForImageClassification.from_pretrained(out).eval()
        with torch.no_grad():
            ours, theirs = (m(**inputs).logits for m in (trained.model.eval(), exported))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
