"""Image classification: from settings to images, model and task."""

import json
from dataclasses import asdict
from functools import partial

import torch

from fedadamw.data.image_decoding import CROPPED, MODEL_SIZE, OWN_SIZE, PixelFormat
from fedadamw.data.image_task import ImageTask, channel_statistics
from fedadamw.data.images import ImageOptions, Images, ImageSource, load_held_out, load_images
from fedadamw.models import vision
from fedadamw.models.dtypes import join_types
from fedadamw.models.heads import count_outputs
from fedadamw.models.loading import build_seeded
from fedadamw.models.lora.adapters import add_adapters
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.processor import BYTE
from fedadamw.models.resizing import BILINEAR, ResizeCrop
from fedadamw.models.vision import ImageModel
from fedadamw.prepare.architecture import resolve_model
from fedadamw.prepare.base import choose_weights
from fedadamw.prepare.described import no_images
from fedadamw.prepare.problem import ImageFacts, LoadWeights, PixelSteps, Problem, place_model
from fedadamw.randomness import Purpose, torch_seed
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Task
from fedadamw.validation import InputError, check


def check_named(experiment: Experiment) -> None:
    """Raise InputError if the settings cannot name an image classifier; no folder is read."""
    model = resolve_model(experiment.model)
    vision.check_named(model.name, depth=model.depth, norm=model.norm)


def load(experiment: Experiment, pretrained: Pretrained | None) -> tuple[Images, Images]:
    """Load the training and held-out images that the experiment names; none if only nodes have data."""
    if experiment.data.classes is not None:
        none = no_images(experiment, pretrained, _image_options(experiment, pretrained))
        return none, none
    options = _image_options(experiment, pretrained)
    return load_images(image_source(experiment), options, want_test=not experiment.data.validation)


def load_test(experiment: Experiment, pretrained: Pretrained | None, facts: ImageFacts) -> Images:
    """Load the held-out images only, with the classes and the pixel format of the training images."""
    target, options = training_format(experiment, pretrained, facts), _image_options(experiment, pretrained)
    return load_held_out(image_source(experiment), tuple(facts["classes"]), target, options)


def image_source(experiment: Experiment) -> ImageSource:
    """Return where the experiment's images are."""
    data = experiment.data
    return ImageSource(
        data.source,
        config=data.config,
        image_column=data.image_column,
        label_column=data.label_column,
        group_column=experiment.partition.client_column,
        test_source=data.test_source,
        test_split=data.test_split,
        every=data.every,
    )


def _image_options(experiment: Experiment, pretrained: Pretrained | None) -> ImageOptions:
    """Return how the settings and the model convert images."""
    data, fresh = experiment.data, experiment.model.fresh
    return ImageOptions(
        size=data.image_size,
        grey=None if data.image_mode == "auto" else data.image_mode == "grey",
        skip_bad=data.on_bad == "skip",
        model_resize=partial(_model_resize, pretrained),
        head_size=None if fresh or pretrained is None else partial(count_outputs, pretrained),
    )


def _model_resize(pretrained: Pretrained | None) -> ResizeCrop | None:
    """Return how the model's own image processor resizes and crops, if it has one."""
    return None if pretrained is None else pretrained.processor.fit


def training_format(experiment: Experiment, pretrained: Pretrained | None, facts: ImageFacts) -> PixelFormat:
    """Return the pixel format of the training images, to convert other images to."""
    data, (channels, height, width) = experiment.data, facts["shape"]
    check(
        data.image_size is None or (height, width) == (data.image_size, data.image_size),
        f"data.image_size={data.image_size}: the model was trained on images of {height} x {width}",
    )
    mode, kind = "grey" if channels == 1 else "rgb", facts.get("fit", OWN_SIZE)
    check(data.image_mode in ("auto", mode), f"data.image_mode={data.image_mode}: the model was trained on {mode}")
    size = (height, width)
    if data.image_size is None and kind != MODEL_SIZE:
        return PixelFormat(channels == 1, size, ResizeCrop(size), kind)
    fit = _model_resize(pretrained)
    if fit is None or kind != MODEL_SIZE:
        fit = ResizeCrop(height, size, fit.resample if fit else BILINEAR)
    return PixelFormat(channels == 1, size, fit, CROPPED if data.image_size is not None else kind)


def build(
    experiment: Experiment,
    pretrained: Pretrained | None,
    train: Images,
    test: Images,
    device: torch.device,
    load_weights: LoadWeights | None = None,
) -> Problem:
    """Build the classifier on `device`, and its task."""
    facts: ImageFacts = {"classes": train.classes, "shape": list(train.pixels.shape[1:]), "fit": train.size_from}
    facts["skipped"] = [train.skipped, 0 if experiment.data.validation else test.skipped]
    built = build_model(experiment, pretrained, facts, load_weights)
    facts["steps"] = steps_of(built, facts)
    _check_size(experiment.model.name, built, facts)
    _add_statistics(experiment, built, train, facts)
    return Problem(
        place_model(experiment, built.model, device), build_task(experiment, built, train, test, device, facts), facts
    )


def _add_statistics(experiment: Experiment, built: ImageModel, train: Images, facts: ImageFacts) -> None:
    """Add mean and std of the pixels: the processor's, the settings', or of `train`; not if there are no images."""
    data, processor = experiment.data, built.processor
    if processor.mean and processor.std:
        check(data.mean is None, f"data.mean: model.name={experiment.model.name!r} has an image processor with its own")
        facts["mean"], facts["std"] = processor.mean, processor.std
    elif data.mean and data.std:
        channels = facts["shape"][0]
        given = f"data.mean has {len(data.mean)} numbers; the images have {channels} channel: give one"
        check(len(data.mean) in (1, channels), given)
        facts["mean"], facts["std"] = (n * channels if len(n) == 1 else n for n in (data.mean, data.std))
    elif len(train):
        facts["mean"], facts["std"] = channel_statistics(train.pixels)


def build_model(
    experiment: Experiment, pretrained: Pretrained | None, facts: ImageFacts, load_weights: LoadWeights | None = None
) -> ImageModel:
    """Build the model; its fresh weights depend on the seed alone. load_weights: fills it with other weights."""
    settings, lora = resolve_model(experiment.model), experiment.lora
    channels, height, width = facts["shape"]
    check(
        pretrained is not None or height == width,
        f"model.name={settings.name!r} takes square images; these are {height} x {width}: set data.image_size",
    )
    shape, weights = vision.ImageShape(width, channels, len(facts["classes"])), choose_weights(experiment, pretrained)

    def build() -> ImageModel:
        if pretrained is None:
            built = vision.build(settings.name, shape, depth=settings.depth, norm=settings.norm)
            built.model.to(weights.dtype)
        else:
            built = vision.build_pretrained(pretrained, shape, weights)
        if load_weights is not None:
            built = built._replace(fresh=load_weights(built.model, facts["classes"]))
        adapted = built.model if lora is None else add_adapters(built.model, lora, None, built.fresh)
        return built._replace(model=join_types(adapted, weights.dtype))

    built = build_seeded(build, torch_seed(experiment.seed, Purpose.INITIAL_MODEL))
    check(
        built.channels in (None, channels) or channels == 1,
        f"model.name={settings.name!r} takes {built.channels} channels; the images have {channels}: set "
        "data.image_mode",
    )
    return built


def build_task(
    experiment: Experiment, built: ImageModel, train: Images, test: Images, device: torch.device, facts: ImageFacts
) -> Task:
    """Build the task of learning the images' classes."""
    return ImageTask(
        train,
        test,
        device=device,
        crop_padding=experiment.data.crop_padding,
        flip=experiment.data.flip,
        inputs=built.processor._replace(fit=remaining_fit(built, facts)).inputs,
        channels=built.channels,
        mean=tuple(facts.get("mean", (0.0,))),  # not known yet: nodes first send the sums of their pixels
        std=tuple(facts.get("std", (1.0,))),
        test_batch_size=experiment.training.evaluation_batch(500),
        resident=experiment.data.resident,
    )


def remaining_fit(built: ImageModel, facts: ImageFacts) -> ResizeCrop | None:
    """Return how stored images are resized and cropped in each batch; None if they are not."""
    fit, kind = built.processor.fit, facts.get("fit")
    if fit is None or kind == MODEL_SIZE:
        return None
    return ResizeCrop(fit.fixed_size, resample=fit.resample) if kind == CROPPED and fit.fixed_size is not None else fit


def steps_of(built: ImageModel, facts: ImageFacts) -> PixelSteps:
    """Return how stored images are prepared before they are normalised, as JSON."""
    _, height, width = facts["shape"]
    fit, processor = remaining_fit(built, facts) or ResizeCrop(), built.processor
    size = (height, width)
    sizes = {size, fit.size_after_resize(size), fit.output_size(size), built.size or size}
    steps = asdict(fit) if len(sizes) > 1 else {}
    steps |= {} if processor.scale == BYTE else {"scale": processor.scale}
    steps |= {"bgr": True} if processor.bgr else {}
    return json.loads(json.dumps(steps))  # type: ignore[no-any-return]


def with_own_pixels(built: ImageModel, facts: ImageFacts) -> ImageFacts:
    """Return `facts` as a run resumed with `built` would write them."""
    changed: ImageFacts = {**facts, "fit": facts.get("fit", OWN_SIZE), "steps": steps_of(built, facts)}
    if built.processor.mean is not None:
        changed["mean"] = built.processor.mean
    if built.processor.std is not None:
        changed["std"] = built.processor.std
    return changed


def _check_size(name: str, built: ImageModel, facts: ImageFacts) -> None:
    """Raise InputError if images do not have the model's size and it takes no other."""
    channels, height, width = facts["shape"]
    fit = remaining_fit(built, facts) or ResizeCrop()
    size = fit.output_size((height, width))
    if built.size in (None, size):
        return
    try:
        with torch.no_grad():
            built.model.eval()(torch.zeros(1, built.channels or channels, *size))
    except (ValueError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0]
        raise InputError(f"model.name={name!r}: it does not take images of {size[0]} x {size[1]}: {why}") from None
    finally:
        built.model.train()
