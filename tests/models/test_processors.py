"""A pretrained image model gets the pixels that its own image processor makes, or is refused by name."""

import json
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import image_files
from support.image_files import noise

from fedadamw.models import processor, vision
from fedadamw.models.pretrained import Pretrained
from fedadamw.prepare import images
from fedadamw.prepare.problem import open_pretrained
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load
from fedadamw.validation import InputError

SHAPE = vision.ImageShape(32, 3, 2)
OBEYED = {
    "as they are": {"do_resize": False, "do_normalize": False},
    "scaled": {"do_resize": False, "rescale_factor": 0.01, "image_mean": 0.4, "image_std": 0.3},
    "bytes": {"do_rescale": False, "image_mean": [100, 110, 120], "image_std": [50, 60, 70]},
    "size as a number": {"size": 32, "resample": 3},
    "size as a list": {"size": [32, 32], "resample": 0},
    "size of the model": {"image_std": [0.2, 0.3, 0.4]},
    "shorter side and middle": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 36},
        "crop_size": 32,
        "resample": 1,
    },
    "padded": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 20}, "crop_size": 32},
    "convnext": {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 32, "crop_pct": 0.875},
    "levit": {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32},
    "poolformer": {"image_processor_type": "PoolFormerImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32},
    "efficientnet": {"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True, "size": 32},
    "blue first": {"image_processor_type": "MobileViTImageProcessor", "size": 34, "crop_size": 32},
}
REFUSED = {
    "do_flip_channel_order": {"image_processor_type": "ViTImageProcessor", "do_flip_channel_order": True},
    "longest_edge": {"size": {"shortest_edge": 32, "longest_edge": 64}},
    "do_pad, pad_size": {"do_pad": True, "pad_size": {"height": 40, "width": 40}, "size": 32},
    "PerceiverImageProcessor": {"image_processor_type": "PerceiverImageProcessor"},
    "pixel_attention_mask": {"image_processor_type": "Siglip2ImageProcessor"},
    "image_std is": {"image_std": [0.5, 0, 0.5]},
    "image_mean has 2 numbers": {"image_mean": [0.5, 0.5]},
    "is custom code": {"auto_map": {"AutoImageProcessor": "mine.Processor"}},
    "resampling filter": {"resample": 17},
}


@pytest.mark.parametrize("name", OBEYED)
def test_the_model_sees_what_its_own_processor_makes_of_a_picture(tmp_path, name):
    from transformers import AutoImageProcessor

    settings = OBEYED[name]
    place = image_files.vit(tmp_path / "vit", settings)
    side = (32, 32) if settings.get("do_resize") is False else (40, 56)
    picture, built = noise(*side, seed=3), vision.build_pretrained(Pretrained(place), SHAPE)
    pixels = torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())[None]
    mean, std = (torch.tensor(m).view(-1, 1, 1) for m in (built.processor.mean, built.processor.std))
    own = {} if "size" in settings else {"size": {"height": 32, "width": 32}}
    theirs = AutoImageProcessor.from_pretrained(place, backend="pil", **own)(picture, return_tensors="pt")
    made = built.processor.inputs(pixels, mean, std)
    torch.testing.assert_close(made, theirs["pixel_values"], rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        assert torch.isfinite(built.model(made).logits).all()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(tmp_path, name):
    place = image_files.vit(tmp_path / "vit", REFUSED[name])
    with pytest.raises(InputError, match=rf"model.name='.*': .*{name}") as refused:
        vision.build_pretrained(Pretrained(place), SHAPE)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("content", "line"), [("{", "is not JSON"), ("[1]", "holds no settings")])
def test_a_file_that_says_nothing_is_refused(tmp_path, content, line):
    place = image_files.vit(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text(content)
    with pytest.raises(InputError, match=f"its preprocessor_config.json {line}"):
        vision.build_pretrained(Pretrained(place), SHAPE)


def test_only_what_is_truly_absent_is_no_processor(tmp_path, monkeypatch):
    """A file that is not in the cache of an offline machine may well be on the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--owner--name"
    for path, content in (("refs/main", "abc"), ("snapshots/abc/config.json", "{}")):
        (cached / path).parent.mkdir(parents=True)
        (cached / path).write_text(content)
    with pytest.raises(InputError, match="model.name='owner/name': its image processor cannot be") as said:
        processor._read_settings("owner/name")
    assert "\n" not in str(said.value)
    for file in processor.FILES:  # as the hub said, once
        (cached / ".no_exist/abc").mkdir(parents=True, exist_ok=True)
        (cached / ".no_exist/abc" / file).touch()
    assert processor._read_settings("owner/name") is None
    local = tmp_path / "local"
    local.mkdir()
    (local / "processor_config.json").write_text("{}")  # of a text's part alone
    assert processor._read_settings(str(local)) is None
    (local / "preprocessor_config.json").mkdir()  # there, but it cannot be read
    with pytest.raises(InputError, match="its image processor cannot be read"):
        processor._read_settings(str(local))


def test_sizes_are_found_wherever_a_configuration_has_them():
    from transformers import CLIPConfig, SiglipConfig, ViTConfig

    nested = {"vision_config": {"image_size": 48, "num_channels": 1}}
    assert [processor.input_size(c(**nested)) for c in (CLIPConfig, SiglipConfig)] == [(48, 48)] * 2
    assert processor.input_channels(CLIPConfig(**nested)) == 1
    assert processor.input_size(ViTConfig(image_size=[16, 24])) == (16, 24)
    for given, found in ((32, (32, 32)), ([20], (20, 20)), ({"height": 8, "width": 9}, (8, 9)), (None, None)):
        assert processor.input_size(SimpleNamespace(image_size=given)) == found


def settings_of(source, model, *more):
    training = "training={rounds: 1, clients_per_round: 2, steps: 1, batch_size: 2, lr: 0.01}"
    return [
        f"data.source={source}",
        f"model={model}",
        "partition={kind: iid, clients: 2}",
        training,
        "device=cpu",
        *more,
    ]


def test_pictures_of_several_sizes_take_the_models_own_and_the_export_makes_the_same(tmp_path):
    """Of a raw picture: what the run gave its model is what the exported folder's processor makes."""
    from transformers import AutoImageProcessor

    from fedadamw.runner.execute import execute
    from fedadamw.runner.folder import RunFolder
    from fedadamw.trained.evaluate import evaluate
    from fedadamw.trained.export import export
    from fedadamw.trained.load import open_run, open_trained

    raw = [noise(40, 30), noise(28, 50, seed=1)]
    source = image_files.folder(tmp_path / "d", train={"a": raw, "b": raw}, test={"a": raw, "b": raw})
    clip = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 36}, "crop_size": 32, "resample": 3}
    for name, processors in (("clip", clip), ("none", None)):
        model = image_files.vit(tmp_path / name, processors)
        experiment, folder = load("digits", settings_of(source, model)), RunFolder(tmp_path / f"run-{name}")
        execute(experiment, folder, resume=False, report=False)
        assert folder.read_manifest()["data"]["fit"] == "model"
        export(open_run(folder.path), tmp_path / f"out-{name}")
        pretrained = open_pretrained(experiment)
        pretrained = open_pretrained(experiment)
        train, test = images.load(experiment, pretrained)
        task = images.build(experiment, pretrained, train, test, torch.device("cpu")).task
        theirs = AutoImageProcessor.from_pretrained(tmp_path / f"out-{name}", backend="pil")
        for i, picture in enumerate(raw):
            wanted = theirs(picture, return_tensors="pt")["pixel_values"]
            torch.testing.assert_close(task._inputs(task.test_pixels[i : i + 1]), wanted, rtol=0, atol=1e-6)
        found, _ = evaluate(open_trained(tmp_path / f"out-{name}", []))
        assert found.loss == pytest.approx(folder.records()[-1]["test_loss"], abs=1e-5)
    with pytest.raises(InputError, match="data.image_size=64: the model was trained on images of 32 x 32"):
        evaluate(open_trained(tmp_path / "out-clip", [("data.image_size", 64)]))


def test_a_grey_set_trains_a_model_of_three_channels_and_its_export_takes_grey_pictures(tmp_path):
    from transformers import AutoImageProcessor

    from fedadamw.trained.export import _processor_settings

    raw = noise(24, 24, 1)
    source = image_files.folder(tmp_path / "d", train={"a": [raw], "b": [raw]}, test={"a": [raw], "b": [raw]})
    experiment = load("digits", settings_of(source, image_files.vit(tmp_path / "vit", {"image_std": 0.25})))
    prepared = prepare(experiment)
    task = prepared.task

    built = images.build_model(experiment, open_pretrained(experiment), prepared.facts)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "preprocessor_config.json").write_text(json.dumps(_processor_settings(built, prepared.facts)))
    theirs = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")(raw, return_tensors="pt")
    torch.testing.assert_close(task._inputs(task.test_pixels[:1]), theirs["pixel_values"], rtol=0, atol=1e-6)


def test_images_of_a_size_that_a_model_does_not_take_are_refused_before_the_first_round(tmp_path):
    source = image_files.folder(
        tmp_path / "d", **{s: {"a": [noise(24, 24)], "b": [noise(24, 24)]} for s in ("train", "test")}
    )
    model = image_files.vit(tmp_path / "vit", {"do_resize": False})
    with pytest.raises(InputError, match="it does not take images of 24 x 24: Input image size .* doesn't match model"):
        prepare(load("digits", settings_of(source, model)))
    assert prepare(load("digits", settings_of(source, model, "data.image_size=32"))).train.pixels.shape[2:] == (32, 32)
    grey = image_files.vit(tmp_path / "grey", channels=1)
    with pytest.raises(InputError, match="takes 1 channels; the images have 3: set data.image_mode"):
        prepare(load("digits", settings_of(source, grey)))
    assert prepare(load("digits", settings_of(source, grey, "data.image_mode=grey"))).train.pixels.shape[1] == 1


def test_a_run_whose_pixels_were_normalised_otherwise_is_not_resumed(tmp_path):
    from fedadamw.runner.execute import execute
    from fedadamw.runner.folder import RunFolder

    experiment = load("digits", ["training={rounds: 1, clients_per_round: 2, steps: 1}", "device=cpu"])
    folder = RunFolder(tmp_path / "run")
    execute(experiment, folder, resume=False, report=False)
    manifest = json.loads(folder.manifest.read_text())
    folder.check_same(manifest)
    changed = {**manifest, "data": {**manifest["data"], "mean": [0.5]}}
    with pytest.raises(ValueError, match="the mean that pixels are normalised by changed since the run started"):
        folder.check_same(changed)


def test_a_run_goes_on_with_the_pixels_that_it_began_with_or_is_refused(tmp_path):
    """A manifest without `fit` and `steps` is of a run whose images were stored in their own size."""
    from fedadamw.checkpoint import CheckpointError
    from fedadamw.runner.execute import execute
    from fedadamw.runner.folder import RunFolder
    from fedadamw.trained.load import open_run

    model = image_files.vit(tmp_path / "vit", {"image_std": 0.25, "size": 32, "resample": 3})
    for side, earlier in ((32, None), (24, "the way that images are prepared changed")):
        raw = {name: [noise(side, side, seed=i)] for i, name in enumerate("ab")}
        source = image_files.folder(tmp_path / f"{side}", train=raw, test=raw)
        experiment, folder = load("digits", settings_of(source, model)), RunFolder(tmp_path / f"run-{side}")
        execute(experiment, folder, resume=False, report=False)
        written = folder.read_manifest()
        assert written["data"]["steps"] == (
            {} if earlier is None else {"resize": [32, 32], "crop": None, "resample": 3}
        )
        other = {"steps": {"resize": [32, 32], "crop": None, "resample": 0}}
        old = {name: value for name, value in written["data"].items() if name not in ("fit", "steps")}
        for data, line in ((old, earlier), (written["data"] | other, "the way that images are prepared changed")):
            folder.manifest.write_text(json.dumps({**written, "data": data}))
            resume = partial(execute, experiment, folder, resume=True, report=False)
            for again in (resume, partial(open_run, folder.path)):
                with nullcontext() if line is None else pytest.raises(CheckpointError, match=line):
                    again()


def test_pictures_larger_than_a_model_takes_are_decoded_to_its_size(tmp_path):
    """The pixels are those that are made in batches of the pictures as they are."""
    from fedadamw.checkpoint import CheckpointError
    from fedadamw.runner.execute import execute
    from fedadamw.runner.folder import RunFolder
    from fedadamw.trained.evaluate import evaluate
    from fedadamw.trained.load import open_trained

    raw = {name: [noise(40, 56, seed=i)] for i, name in enumerate("ab")}
    source = image_files.folder(tmp_path / "d", train=raw, test=raw)
    clip = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 36}, "crop_size": 32, "resample": 3}
    experiment = load("digits", settings_of(source, image_files.vit(tmp_path / "clip", clip)))
    pretrained = open_pretrained(experiment)
    pretrained = open_pretrained(experiment)
    train, test = images.load(experiment, pretrained)
    assert (train.pixels.shape, test.pixels.shape, train.size_from) == ((2, 3, 32, 32), (2, 3, 32, 32), "model")
    whole = torch.from_numpy(np.stack([np.asarray(found[0]).transpose(2, 0, 1) for found in raw.values()]))
    fit = pretrained.processor.fit
    assert np.array_equal(train.pixels, fit.resize_batch(whole).numpy())
    folder = RunFolder(tmp_path / "run")
    execute(experiment, folder, resume=False, report=False)
    found, _ = evaluate(open_trained(folder.path, []))
    assert found.loss == pytest.approx(folder.records()[-1]["test_loss"], abs=1e-5)
    written = folder.read_manifest()
    kept = {**written["data"], "fit": "size", "shape": [3, 40, 56]}
    del kept["steps"]
    folder.manifest.write_text(json.dumps({**written, "data": kept}))
    with pytest.raises(CheckpointError, match=r"form that images are stored in changed .*\(was size, is model\)"):
        execute(experiment, folder, resume=True, report=False)
    with pytest.raises(InputError, match="the data's images are not in the run's pixel format"):
        evaluate(open_trained(folder.path, []))
