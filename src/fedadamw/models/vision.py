"""Image classifiers of transformers: models of the papers' sizes, and pretrained ones."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn

from fedadamw.models.dtypes import Weights
from fedadamw.models.loading import is_hub_id, is_local, silence_libraries
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.processor import Processor, input_channels, input_size
from fedadamw.models.resizing import Size
from fedadamw.validation import check, check_one_of


class ImageShape(NamedTuple):
    """Size, channels and classes of the data."""

    size: int
    channels: int
    classes: int


class ImageModel(NamedTuple):
    """A classifier, and how images are prepared for it."""

    model: nn.Module
    processor: Processor = Processor()
    channels: int | None = None  # None: as many as the images have
    size: Size | None = None  # of its input, if its configuration says so
    fresh: Sequence[str] = ()  # modules that the pretrained weights lack


def build(name: str, shape: ImageShape, *, depth: int | None = None, norm: str = "group") -> ImageModel:
    """Build the classifier `name` of NAMES with fresh weights.

    depth: layers of a ViT, instead of its own number. norm: `group` or `batch`, for ResNets.
    """
    check_one_of("model.name", name, NAMES)
    check_named(name, depth=depth, norm=norm)
    silence_libraries()
    if name in VITS:
        return ImageModel(_build_vit(shape, VITS[name], depth))
    if name == "swin-nano":
        return ImageModel(_build_swin(shape, patch=shape.size // 8, width=32, depths=[2, 2], heads=[2, 4]))
    if name == "swin-tiny":
        depths, heads = [2, 2, 6, 2], [3, 6, 12, 24]
        return ImageModel(_build_swin(shape, patch=shape.size // 32, width=96, depths=depths, heads=heads))
    return ImageModel(_build_resnet(shape, norm, *RESNETS[name]))


def build_pretrained(pretrained: Pretrained, shape: ImageShape, weights: Weights = Weights()) -> ImageModel:  # noqa: B008
    """Build a pretrained classifier, with a fresh head if its own has another number of classes."""
    from transformers import AutoModelForImageClassification

    model, lacking = pretrained.build(AutoModelForImageClassification, weights, num_labels=shape.classes)
    config = pretrained.config
    return ImageModel(model, pretrained.processor, input_channels(config), input_size(config), lacking)


def check_named(name: str, *, depth: int | None, norm: str) -> None:
    """Raise InputError if `name` cannot be a classifier or does not have these settings; no folder is read."""
    if not is_hub_id(name) and not is_local(name):
        check_one_of("model.name", name, (*NAMES, "a hub id (owner/name)", "a folder (./path)"))
    check(norm == "group" or name in RESNETS, f"model.norm is a setting of {', '.join(RESNETS)}, not of {name!r}")
    check(depth is None or name in VITS, f"model.depth is a setting of {', '.join(VITS)}, not of {name!r}")


class ViTSize(NamedTuple):
    """A ViT's size."""

    patch: int
    width: int
    depth: int
    heads: int
    init: float  # standard deviation of fresh weights


VITS = {
    "vit-nano": ViTSize(patch=8, width=64, depth=3, heads=4, init=0.1),
    "vit-micro": ViTSize(patch=2, width=64, depth=2, heads=4, init=0.1),
    "vit-mini": ViTSize(patch=4, width=64, depth=3, heads=4, init=0.1),
    "vit-tiny": ViTSize(patch=4, width=192, depth=12, heads=3, init=0.02),
}
RESNETS = {  # widths of the stages, blocks in each, stride of the stem, fewest channels in a group of a GroupNorm
    "resnet-nano": ([16, 32, 64], 1, 2, 8),
    "resnet18": ([64, 128, 256, 512], 2, 1, 2),
}
NAMES = (*VITS, "swin-nano", "swin-tiny", "resnet-nano", "resnet18")


def import_classes(name: str) -> None:
    """Import what building the classifier `name` of NAMES imports."""
    if name in VITS:
        from transformers import ViTConfig, ViTForImageClassification  # noqa: F401
    elif name in RESNETS:
        from transformers import ResNetConfig, ResNetForImageClassification  # noqa: F401
    else:
        from transformers import SwinConfig, SwinForImageClassification  # noqa: F401


def _build_vit(shape: ImageShape, size: ViTSize, depth: int | None) -> nn.Module:
    """Build a ViT (arXiv 2010.11929) whose MLPs are 4 x width wide."""
    from transformers import ViTConfig, ViTForImageClassification

    _check_divides("patch", size.patch, shape.size)
    model: nn.Module = ViTForImageClassification(
        ViTConfig(
            image_size=shape.size,
            num_channels=shape.channels,
            num_labels=shape.classes,
            patch_size=size.patch,
            hidden_size=size.width,
            intermediate_size=4 * size.width,
            num_hidden_layers=depth or size.depth,
            num_attention_heads=size.heads,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=size.init,
        )
    )
    return model


def _build_swin(shape: ImageShape, *, patch: int, width: int, depths: list[int], heads: list[int]) -> nn.Module:
    """Build a Swin (arXiv 2103.14030) with a window of 4 patches.

    swin-tiny has 8, 4, 2 and 1 windows a side in its four stages, as the original at 224 px with a patch of 4 and a
    window of 7; here the patch is 1/32 of the image.
    """
    from transformers import SwinConfig, SwinForImageClassification

    _check_divides("smallest patch grid", 4 * 2 ** (len(depths) - 1), shape.size)
    model: nn.Module = SwinForImageClassification(
        SwinConfig(
            image_size=shape.size,
            num_channels=shape.channels,
            num_labels=shape.classes,
            patch_size=patch,
            window_size=4,
            embed_dim=width,
            depths=depths,
            num_heads=heads,
        )
    )
    return model


def _build_resnet(
    shape: ImageShape, norm: str, widths: list[int], blocks: int, stride: int, channels: int
) -> nn.Module:
    """Build a ResNet (arXiv 1512.03385) for small images: a 3x3 stem without pooling; GroupNorm or BatchNorm.

    GroupNorm by default, of at most 32 groups: BatchNorm's statistics differ between clients (arXiv 1910.00189).
    """
    from transformers import ResNetConfig, ResNetForImageClassification

    check(norm in ("group", "batch"), f"model.norm={norm!r} is unknown; use one of group, batch")
    model: Any = ResNetForImageClassification(
        ResNetConfig(
            num_channels=shape.channels,
            num_labels=shape.classes,
            embedding_size=widths[0],
            hidden_sizes=widths,
            depths=[blocks] * len(widths),
            layer_type="basic",
        )
    )
    stem = model.resnet.embedder
    stem.embedder.convolution = nn.Conv2d(shape.channels, widths[0], 3, stride=stride, padding=1, bias=False)
    stem.pooler = nn.Identity()
    if norm == "group":

        def group_norm(old: nn.BatchNorm2d) -> nn.Module:
            return nn.GroupNorm(min(32, old.num_features // channels), old.num_features)

        _replace(model, nn.BatchNorm2d, group_norm)
    return model  # type: ignore[no-any-return]


def _replace(model: nn.Module, kind: type[nn.Module], new: Callable[[Any], nn.Module]) -> None:
    """Replace every module of class `kind` by `new(module)`."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, kind):
                setattr(module, name, new(child))


def _check_divides(what: str, divisor: int, size: int) -> None:
    check(
        size % divisor == 0,
        f"images of {size} px cannot be divided by the model's {what} of {divisor}: set data.image_size to a multiple",
    )
