"""What a model's own image processor does to a picture; one that cannot be reproduced exactly here is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedadamw.models.loading import as_input_error, load_image_processor, load_named, locate
from fedadamw.models.resizing import BILINEAR, ResizeCrop, Size
from fedadamw.validation import InputError, check

FILES = ("preprocessor_config.json", "processor_config.json")  # either may hold an image processor
BYTE = 1 / 255
PROBES = ((40, 56), (300, 260))  # height and width of pictures on which both are compared
TOLERANCE = 1e-4  # of the comparison, relative to the largest input
USUAL = (
    *("image_processor_type", "feature_extractor_type", "processor_class", "do_resize", "size", "resample"),
    *("do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
    "do_convert_rgb",
)
UNCROPPED = 384  # from this size on, a ConvNeXt's processor does not crop


class Processor(NamedTuple):
    """From bytes to a model's input: resize and crop, scale, normalise each channel, swap red and blue.

    mean, std: of scaled pixels; None: the training set's own. settings: the processor's file for transformers; None if
    the model has no image processor.
    """

    fit: ResizeCrop | None = None
    scale: float = BYTE
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    bgr: bool = False
    settings: Mapping[str, Any] | None = None

    def inputs(self, pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Return the model's input for bytes (n, c, h, w); mean, std: (c, 1, 1)."""
        if self.fit is not None:
            pixels = self.fit.resize_batch(pixels)
        if self.bgr and pixels.shape[1] == 3:
            pixels = pixels.flip(1)
        x = pixels.float() / 255 if self.scale == BYTE else pixels.float() * self.scale
        return (x - mean) / std


def read_processor(name: str, config: Any) -> Processor:
    """Read the image processor of a model's folder or hub id; `config`: the model's."""
    size, channels = input_size(config), input_channels(config)
    settings = _read_settings(name)
    check(channels in (1, 3), f"model.name={name!r} takes {channels} channels; images have 1 or 3")
    if settings is None:
        return Processor(ResizeCrop(size) if size else None)
    sizes = _default_sizes(settings, size)
    code = settings.get("auto_map") and not settings.get("image_processor_type")
    check(not code, f"model.name={name!r}: its image processor is custom code, which is never run")
    theirs = load_named("model.name", name, lambda place: load_image_processor(place, config, **sizes))
    kind = type(theirs).__name__.removesuffix("Pil")
    try:
        ours = _translate(theirs, kind, channels)
        difference = _difference(ours, theirs, channels)
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"model.name={name!r}: its image processor ({kind}) cannot be reproduced: {why}") from None
    check(
        difference is None,
        f"model.name={name!r}: its image processor ({kind}) cannot be reproduced: {difference}{_unusual(settings)}; "
        "give it a preprocessor_config.json of a ViTImageProcessor",
    )
    return ours


def input_size(config: Any) -> Size | None:
    """The height and width of a model's input, None if its configuration does not say."""
    size = _vision(config, "image_size")
    if isinstance(size, int) and not isinstance(size, bool):
        return size, size
    if isinstance(size, Mapping):
        size = (size.get("height"), size.get("width"))
    if isinstance(size, list | tuple) and len(size) == 1:
        size = (size[0], size[0])
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return int(size[0]), int(size[1])
    return None


def input_channels(config: Any) -> int:
    """How many channels a model takes."""
    channels = _vision(config, "num_channels")
    return channels if isinstance(channels, int) else 3


def _vision(config: Any, name: str) -> Any:
    """A setting of a configuration, or of its vision_config."""
    parts = (config, getattr(config, "vision_config", None))
    return next((found for part in parts if (found := getattr(part, name, None)) is not None), None)


def _read_settings(name: str) -> dict[str, Any] | None:
    """Read the image processor's file of a folder or hub id; None if there is none."""
    from transformers.image_processing_base import ImageProcessingMixin

    place = locate("model.name", name)
    try:
        found, _ = ImageProcessingMixin.get_image_processor_dict(place)
    except OSError as error:
        if "valid JSON" in str(error):
            raise InputError(f"model.name={name!r}: its preprocessor_config.json is not JSON") from None
        with as_input_error(f"model.name={name!r}: its image processor cannot be read"):
            absent, _ = (_is_absent(place, file) for file in FILES)  # the second was read, or is absent, too
            if absent:
                return None
            raise
    check(isinstance(found, dict), f"model.name={name!r}: its preprocessor_config.json holds no settings")
    return dict(found)


def _is_absent(place: str, file: str) -> bool:
    """Whether a folder or hub id has no such file; raises OSError if that is unknown, as without a network."""
    if Path(place).is_dir():
        return not (Path(place) / file).exists()
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if try_to_load_from_cache(place, file) is _CACHED_NO_EXIST:
        return True
    try:
        hf_hub_download(place, file)
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise
        return True
    return False


def _default_sizes(settings: Mapping[str, Any], size: Size | None) -> dict[str, Any]:
    """The size of the model's input, for a processor whose file has none."""
    if size is None or settings.get("size") is not None or settings.get("crop_size") is not None:
        return {}
    square = {"height": size[0], "width": size[1]}
    return {"size": square, "crop_size": square}


def _translate(theirs: Any, kind: str, channels: int) -> Processor:
    """Translate the settings of an image processor of transformers into its steps."""

    def setting(name: str) -> Any:
        return getattr(theirs, name, None)

    scale = float(setting("rescale_factor")) if setting("do_rescale") else 1.0
    mean, std = (0.0,) * channels, (1.0,) * channels
    if setting("do_normalize"):
        mean, std = (_channels(setting(name), channels, name) for name in ("image_mean", "image_std"))
    if kind.startswith("EfficientNet"):
        mean = tuple(m + bool(setting("rescale_offset") and setting("do_rescale")) for m in mean)
        if setting("include_top"):
            std = tuple(
                s * again for s, again in zip(std, _channels(setting("image_std"), channels, "image_std"), strict=True)
            )
    check(all(s > 0 for s in std), f"image_std is {list(std)}")
    fit = _fit(theirs, kind)
    settings = json.loads(theirs.to_json_string())
    return Processor(fit, scale, mean, std, bgr=bool(setting("do_flip_channel_order")), settings=settings)


def _fit(theirs: Any, kind: str) -> ResizeCrop | None:
    """How an image processor resizes and crops."""
    resample = BILINEAR if theirs.resample is None else int(theirs.resample)
    size = _side(theirs.size) if theirs.do_resize else None
    crop = _side(getattr(theirs, "crop_size", None)) if getattr(theirs, "do_center_crop", None) else None
    if isinstance(crop, int):
        crop = (crop, crop)
    if kind.startswith("ConvNext") and isinstance(size, int):
        square = (size, size)
        if size >= UNCROPPED:
            size = square
        else:
            check(crop in (None, square), f"crop_size is {crop} where size and crop_pct make {square}")
            size, crop = int(size / theirs.crop_pct), square
    elif kind.startswith("Levit") and isinstance(size, int):
        size = int(256 / 224 * size)
    elif kind.startswith("PoolFormer") and size is not None and theirs.crop_pct is not None:
        size = int((size if isinstance(size, int) else size[0]) / theirs.crop_pct)
    return ResizeCrop(size, crop, resample) if size or crop else None


def _side(size: Any) -> Size | int | None:
    """A height and width, or the length of the shorter side."""
    if size is None:
        return None
    given = {key: value for key, value in dict(size).items() if value is not None}
    if set(given) == {"height", "width"}:
        return int(given["height"]), int(given["width"])
    check(set(given) == {"shortest_edge"}, f"its size is {given}")
    return int(given["shortest_edge"])


def _channels(value: Any, channels: int, name: str) -> tuple[float, ...]:
    """A number for each channel, from one for each or one for all."""
    check(value is not None, f"{name} is missing")
    found = (float(value),) * channels if isinstance(value, int | float) else tuple(map(float, value))
    check(len(found) == channels, f"{name} has {len(found)} numbers, and the model takes {channels} channels")
    return found


def _difference(ours: Processor, theirs: Any, channels: int) -> str | None:
    """How the processor's own output for some pictures differs from ours, in words; None if it does not."""
    from PIL import Image

    generator = np.random.default_rng(0)
    mean, std = (torch.tensor(m, dtype=torch.float32).view(-1, 1, 1) for m in (ours.mean, ours.std))
    for height, width in PROBES:
        pixels = generator.integers(0, 256, (height, width, channels), dtype=np.uint8)
        picture = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
        found = dict(theirs(picture, return_tensors="np"))
        if set(found) != {"pixel_values"}:
            return f"it makes {', '.join(found)}"
        wanted = torch.from_numpy(np.asarray(found["pixel_values"], dtype=np.float32))
        made = ours.inputs(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()), mean, std)
        if made.shape != wanted.shape:
            said = f"its settings say {_words(made.shape[2:])}"
            return f"it makes {_words(wanted.shape[1:])} of {_words(pixels.shape)}, where {said}"
        if (made - wanted).abs().max() > TOLERANCE * max(1.0, float(wanted.abs().max())):
            return "its pixels are not what its settings say"
    return None


def _unusual(settings: Mapping[str, Any]) -> str:
    """The rare settings of a file, in words."""
    odd = sorted(key for key, value in settings.items() if key not in USUAL and value not in (None, False))
    return f" (it sets {', '.join(odd)})" if odd else ""


def _words(shape: Any) -> str:
    return " x ".join(map(str, shape))
