"""Decoding of images: the training set decides their format, and bad images are reported."""

import errno
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import image_files
from support.image_files import GREEN, RED, noise

from fedadamw.data.image_decoding import BadImageError, DecodeSummary, PixelFormat, image_to_array, run_decoder
from fedadamw.data.images import ImageOptions, ImageSource, load_images
from fedadamw.data.pixel_cache import load_pixels, load_survey
from fedadamw.models.resizing import ResizeCrop
from fedadamw.prepare import images as problem
from fedadamw.settings.load import load
from fedadamw.validation import InputError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def table(place: Path, **splits) -> str:
    """Parquet files of pictures, as (bytes or None), and labels; the columns `image` and `label` or others."""
    import datasets

    place.mkdir(exist_ok=True)
    for split, columns in splits.items():
        kinds = {name: datasets.Image() for name in columns if name != "label"}
        data = datasets.Dataset.from_dict(columns)
        for name, kind in kinds.items():
            data = data.cast_column(name, kind)
        data.to_parquet(str(place / f"{split}.parquet"))
    return str(place)


def cells(found) -> list:
    """Pictures as `datasets` keeps them; None is none."""
    import io

    def content(picture):
        if picture is None or isinstance(picture, bytes):
            return picture and {"bytes": picture, "path": None}
        file = io.BytesIO()
        picture.save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    return [content(picture) for picture in found]


def test_one_picture_with_colour_keeps_the_colour_of_all(tmp_path):
    grey, colour = Image.new("L", (8, 6), 77), Image.new("RGB", (8, 6), RED)
    source = image_files.folder(
        tmp_path / "d", train={"a": [grey, colour], "b": [grey]}, test={"a": [grey], "b": [colour]}
    )
    train, test = load_images(ImageSource(source))
    assert train.pixels.shape == (3, 3, 6, 8)
    assert train.pixels[:, :, 0, 0].tolist() == [[77] * 3, list(RED), [77] * 3]
    assert test.pixels[:, :, 0, 0].tolist() == [[77] * 3, list(RED)]


def test_held_out_images_get_the_training_format_with_a_warning(tmp_path):
    source = image_files.folder(
        tmp_path / "d",
        train={"a": [noise(8, 8, 1)], "b": [noise(8, 8, 1, 1)]},
        test={"a": [noise(16, 12, 3)], "b": [noise(8, 8, 1)]},
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train, test = load_images(ImageSource(source))
    assert train.pixels.shape[1:] == test.pixels.shape[1:] == (1, 8, 8)
    whole = noise(16, 12, 3).convert("L").resize((8, 8), Image.Resampling.BILINEAR)
    assert np.array_equal(test.pixels[0, 0], np.asarray(whole))
    text = [str(w.message) for w in said if "images" in str(w.message)]
    assert any("1 of 2 images are resized to the training images' 8 x 8" in line for line in text)
    assert any("1 of 2 images are converted to grey" in line for line in text)


def test_a_node_converts_its_images_to_the_training_format(tmp_path):
    from fedadamw.flower.node.local_data import load_node_samples

    own = image_files.folder(tmp_path / "own", train={"a": [noise(20, 10, 1)], "b": [Image.new("L", (8, 8), 9)]})
    (tmp_path / "own/train/b/1.png").write_bytes(image_files.truncated(noise(8, 8)))
    settings = ["partition.kind=nodes", "data.image_size=6", "data.on_bad=skip"]
    about = {"classes": ["a", "b"], "shape": [3, 6, 6], "fit": "crop"}
    config = {"partition-id": 0, "data": own, "split": "train"}
    with pytest.warns(UserWarning, match=r"1 of 3 images cannot be used: row 3 of 3 \(b/1.png\)"):
        found, _, samples, _ = load_node_samples(load("digits", settings), None, about, config, 0)
    assert found.pixels.shape == (2, 3, 6, 6)
    assert len(samples) == 2
    cut = noise(20, 10, 1).convert("RGB").resize((6, 12), Image.Resampling.BILINEAR).crop((0, 3, 6, 9))
    assert np.array_equal(found.pixels[0], np.asarray(cut).transpose(2, 0, 1))


def _of(mode: str, value: float | tuple[int, ...]) -> Image.Image:
    if mode.startswith("I;16"):
        return Image.frombytes("I;16", (4, 4), int(value).to_bytes(2, "little") * 16)
    return Image.new(mode, (4, 4), value)


@pytest.mark.parametrize(
    ("mode", "value", "grey", "colour"),
    [
        ("1", 1, 255, (255,) * 3),
        ("L", 40, 40, (40,) * 3),
        ("I;16", 40000, 156, (156,) * 3),
        ("I", 65535, 255, (255,) * 3),
        ("F", 0.5, 128, (128,) * 3),
        ("RGBA", (*RED, 0), None, RED),
        ("LA", (90, 10), None, (90,) * 3),
        ("CMYK", (0, 255, 255, 0), None, (255, 0, 0)),
        ("YCbCr", (128, 128, 128), None, (128,) * 3),
    ],
)
def test_every_mode_is_scaled_by_its_own_range(mode, value, grey, colour):
    picture = _of(mode, value)
    size = (4, 4)
    assert image_to_array(picture, PixelFormat(False, size, ResizeCrop(size)))[:, 0, 0].tolist() == list(colour)
    if grey is not None:
        assert image_to_array(picture, PixelFormat(True, size, ResizeCrop(size)))[:, 0, 0].tolist() == [grey]


@pytest.mark.parametrize(
    ("mode", "value", "line"),
    [
        ("F", 40.0, "holds 40 to 40; Pillow's mode F must hold fractions"),
        ("F", float("nan"), "nan"),
        ("I", -1, "whole numbers from 0 to"),
    ],
)
def test_values_outside_the_modes_range_are_refused(mode, value, line):
    with pytest.raises(BadImageError, match=line):
        image_to_array(_of(mode, value), PixelFormat(grey=True, size=(4, 4), resize=ResizeCrop((4, 4))))


def test_palettes_are_converted_and_exif_rotation_is_applied(tmp_path):
    place = tmp_path / "d"
    two = Image.new("RGB", (10, 6), RED)
    two.paste(GREEN, (5, 0, 10, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    for split in ("train", "test"):
        (place / split / "a").mkdir(parents=True)
        two.quantize(4).save(place / split / "a" / "0.png")
        two.transpose(Image.Transpose.ROTATE_90).save(place / split / "a" / "1.png", exif=exif)
    train, _ = load_images(ImageSource(str(place)))
    assert train.pixels.shape == (2, 3, 6, 10), "both lie on their long side"
    for x, colour in ((0, RED), (9, GREEN)):
        assert np.abs(train.pixels[:, :, 3, x].astype(int) - colour).max() <= 2


def test_a_rotated_tiff_has_its_rotated_size(tmp_path):
    from fedadamw.data.images import _check_header_sizes

    exif, two = Image.Exif(), Image.new("RGB", (6, 4), RED)
    exif[0x0112] = 6
    two.paste(GREEN, (3, 0, 6, 4))
    for name in ("train/a", "test/a"):
        (tmp_path / "d" / name).mkdir(parents=True)
        two.save(tmp_path / "d" / name / "0.tif", exif=exif)
    train, _ = load_images(ImageSource(str(tmp_path / "d")))
    assert np.array_equal(train.pixels[0], np.asarray(two.rotate(-90, expand=True)).transpose(2, 0, 1))
    with pytest.raises(InputError, match="1 of 5 images have another size than their files' headers say"):
        _check_header_sizes(
            "data.source='d'",
            5,
            PixelFormat(grey=False, size=(4, 6), resize=ResizeCrop((4, 6))),
            DecodeSummary({}, resized=1),
        )


def test_a_repaired_image_is_no_longer_bad(tmp_path):
    import datasets

    places = [tmp_path / "0.png", tmp_path / "1.png"]
    noise(8, 8).save(places[0])
    split = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": str(place)} for place in places]})
    split, form = (
        split.cast_column("image", datasets.Image()),
        PixelFormat(grey=False, size=(8, 8), resize=ResizeCrop((8, 8))),
    )
    for bad in ([1], [], []):
        pixels, notes = load_pixels(split, "image", form)
        assert [*load_survey(split, "image").bad] == [*notes.bad] == bad
        assert np.array_equal(pixels, np.stack([np.asarray(noise(8, 8)).transpose(2, 0, 1)] * (2 - len(bad))))
        assert not bad or not [*(tmp_path / "cache" / "fedadamw-pixels").iterdir()]
        noise(8, 8).save(places[1])


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EIO, errno.ENOENT, None])
def test_system_errors_do_not_make_an_image_bad(number):
    def work():
        raise OSError(number, "why") if number else OSError("image file is truncated")

    with pytest.raises(InputError, match="why|truncated") as raised:
        run_decoder(work)
    assert isinstance(raised.value, BadImageError) == (number in (errno.ENOENT, None))


def test_images_of_several_sizes_need_image_size_and_keep_their_aspect(tmp_path):
    found = {"a": [noise(20, 30)], "b": [noise(40, 20)]}
    source = image_files.folder(tmp_path / "d", train=found, test=found)
    with pytest.raises(InputError, match=r"of several sizes, 20 x 30 to 40 x 20; set data.image_size=N"):
        load_images(ImageSource(source))
    train, test = load_images(ImageSource(source), ImageOptions(size=10))
    wide = noise(20, 30).resize((15, 10), Image.Resampling.BILINEAR).crop((2, 0, 12, 10))
    high = noise(40, 20).resize((10, 20), Image.Resampling.BILINEAR).crop((0, 5, 10, 15))
    for i, picture in enumerate((wide, high)):
        assert np.array_equal(train.pixels[i], np.asarray(picture).transpose(2, 0, 1))
    assert np.array_equal(train.pixels, test.pixels)
    assert load_images(ImageSource(source), ImageOptions(size=10, grey=True))[0].pixels.shape == (2, 1, 10, 10)


def test_the_settings_hold_for_the_digits_too():
    train, test = problem.load(load("digits", ["data.image_size=16", "data.image_mode=RGB"]), None)
    assert train.pixels.shape == (1437, 3, 16, 16)
    assert test.pixels.shape == (360, 3, 16, 16)
    with pytest.raises(InputError, match="data.image_size=0"):
        load("digits", ["data.image_size=0"])
    with pytest.raises(InputError, match=r"data\.image_mode='blue'"):
        load("digits", ["data.image_mode=blue"])
    with pytest.raises(InputError, match=r"data.on_bad is not a setting of data.task='text'"):
        load("digits", ["data.task=text", "data.on_bad=skip"])


@pytest.fixture
def damaged(tmp_path):
    """Five pictures of two classes, of which one is cut short, one is text and one is nothing."""
    good = noise(64, 64)
    content = cells([good, image_files.truncated(good), b"no picture", None, good])
    test = {"image": cells([good, good]), "label": ["a", "b"]}
    return table(tmp_path / "d", train={"image": content, "label": [*"abbbb"]}, test=test), good


def test_a_damaged_image_is_named(damaged):
    source, _ = damaged
    with pytest.raises(
        InputError, match=r"images cannot be used: row 3 of 5: is not an image; row 4 of 5: there is no"
    ):
        load_images(ImageSource(source))


def test_a_truncated_image_is_named_and_not_mistaken_for_a_full_disk(tmp_path):
    source = image_files.folder(
        tmp_path / "d", **{s: {"a": [noise(64, 64)], "b": [noise(64, 64)]} for s in ("train", "test")}
    )
    (tmp_path / "d/test/b/0.png").write_bytes(image_files.truncated(noise(64, 64)))
    with pytest.raises(
        InputError, match=r"split 'test': 1 of 2 images cannot be used: row 2 of 2 \(b/0.png\): .*data.on_bad=skip"
    ):
        load_images(ImageSource(source))
    (tmp_path / "d/test/a/0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"2 of 2 images cannot be used: .*; none is left"):
        load_images(ImageSource(source), ImageOptions(skip_bad=True))


def test_bad_images_are_skipped_counted_and_reported(damaged):
    source, good = damaged
    for _ in range(2):
        with pytest.warns(UserWarning, match="3 of 5 images cannot be used: row 2 of 5: .*; skipped"):
            train, test = load_images(ImageSource(source), ImageOptions(skip_bad=True))
        assert (len(train), train.skipped, test.skipped) == (2, 3, 0)
        assert np.array_equal(train.pixels, np.stack([np.asarray(good).transpose(2, 0, 1)] * 2))
        assert train.labels.tolist() == [0, 1]
        assert isinstance(train.pixels, np.memmap)


def test_row_numbers_count_skipped_images(tmp_path):
    content = cells([b"no picture", *[noise(8, 8)] * 5])
    test = {"image": cells([noise(8, 8)]), "label": ["a"]}
    skip = ImageOptions(skip_bad=True)
    unnamed = table(tmp_path / "d", train={"image": content, "label": ["a", "a", "b", None, "a", "b"]}, test=test)
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(InputError, match="is empty in row 4 of 6"):
        load_images(ImageSource(unnamed), skip)
    bad = table(tmp_path / "e", train={"image": content, "label": [None, "a", "b", "b", "a", "b"]}, test=test)
    with pytest.warns(UserWarning, match="skipped"):
        assert load_images(ImageSource(bad), skip)[0].labels.tolist() == [0, 1, 1, 0, 1]


def test_dark_16_bit_images_are_reported(tmp_path):
    source = image_files.folder(
        tmp_path / "d", **{s: {"a": [_of("I;16", 3900)], "b": [_of("I;16", 9)]} for s in ("train", "test")}
    )
    with pytest.warns(
        UserWarning, match="no pixel of the 16-bit images is over 15 of 255; they should use the range to 65,535"
    ):
        train, _ = load_images(ImageSource(source))
    assert train.pixels.max() == 15


def test_fractions_are_no_classes(tmp_path):
    content = {"image": cells([noise(8, 8)] * 3), "label": [0.5, 1.8, 3.1]}
    with pytest.raises(InputError, match="column 'label' holds fractions where classes are expected"):
        load_images(ImageSource(table(tmp_path / "d", train=content, test=content)))


def test_a_column_without_images_is_refused(tmp_path):
    content = {"image": cells([noise(8, 8)] * 2), "label": [0, 1]}
    with pytest.raises(InputError, match="column 'label' holds int64 where images are expected"):
        load_images(
            ImageSource(table(tmp_path / "d", train=content, test=content), image_column="label", label_column="label")
        )


@pytest.mark.parametrize("column", ["x/../../../precious", "/tmp/x", "a\nb", "..", "x" * 300])
def test_a_column_name_cannot_escape_the_cache_folder(tmp_path, column):
    content = {column: cells([noise(8, 8)] * 2), "label": [0, 1]}
    precious = tmp_path / "precious.npy"
    precious.write_bytes(b"kept")
    source = table(tmp_path / "d", train=content, test=content)
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    train, _ = load_images(ImageSource(source))
    assert len(train) == 2
    assert precious.read_bytes() == b"kept"
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before
    cached = list((tmp_path / "cache" / "fedadamw-pixels").iterdir())
    assert len(cached) == 5, "two splits with their notes, and what the headers say"
    assert all(path.is_file() for path in cached)


@pytest.mark.parametrize("resample", range(6))
@pytest.mark.parametrize(
    ("before", "fit"),
    [((30, 26), ((22, 22), None)), ((8, 12), (20, (24, 16))), ((9, 9), ((31, 17), (16, 16))), ((5, 7), (None, (3, 9)))],
)
def test_resizing_a_batch_gives_the_bytes_of_pillow(before, fit, resample):
    fit, picture = ResizeCrop(*fit, resample), noise(*before)
    batch = torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())[None]
    expected = np.asarray(fit.resize_image(picture)).transpose(2, 0, 1)
    assert expected.shape[1:] == fit.output_size(before)
    assert np.array_equal(fit.resize_batch(batch)[0].numpy(), expected)


def test_runs_begun_earlier_have_the_same_pixels_and_settings():
    """Digests that an earlier version wrote."""
    from fedadamw.runner.digest import settings_digest

    assert [found.fingerprint for found in load_images(ImageSource("digits"))] == [
        "ce36cf39979a9f9c",
        "0ec5e72913a6aae2",
    ]
    assert settings_digest(load("digits")) == "e0f568804902e74f"
    assert settings_digest(load("digits", ["data.image_size=16"])) != "e0f568804902e74f"


def test_forks_decode_the_same_pixels_and_notice_the_same(tmp_path, monkeypatch):
    from fedadamw.data import row_parts
    from fedadamw.data.image_decoding import decode_images
    from fedadamw.data.sources import read_splits

    grey16 = Image.fromarray((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8))
    pictures = [noise(8, 8), b"torn", grey16, noise(9, 8), None, noise(8, 8), noise(8, 8).convert("L")]
    content = {"image": cells(pictures), "label": [0] * len(pictures)}
    split = read_splits(table(tmp_path / "d", train=content))["train"]
    form = PixelFormat(grey=True, size=(8, 8), resize=ResizeCrop((8, 8)))
    alone, shared = (memory_of_forks(split, form) for _ in range(2))
    expected = decode_images(split, "image", form, alone), load_survey(split, "image")
    monkeypatch.setattr(row_parts, "MIN_ROWS", 1)
    monkeypatch.setattr(row_parts, "PART", 2)
    assert (decode_images(split, "image", form, shared), load_survey(split, "image")) == expected
    assert [*expected[0].bad] == [*expected[1].bad] == [1, 4]
    assert (expected[0].coloured, expected[0].resized, expected[0].brightest) == (3, 1, 245)
    assert np.array_equal(alone[:5], shared[:5])
    assert alone[:5].any(axis=(1, 2, 3)).all()


def memory_of_forks(split, form):
    from fedadamw.data.pixel_cache import _new_array

    return _new_array((len(split), *form.shape))
