"""The model of a run's folder: its weights are the start of another run, with model.name=runs/x.

Adapters are merged into the weights that they adapt, so the new run starts from what the old one computes.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedadamw import checkpoint
from fedadamw.engine.best import MODEL, read_best
from fedadamw.models.loading import as_input_error, warn_if_fresh
from fedadamw.models.lora.means import Folding
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.quantized import merge
from fedadamw.models.text import TextModel
from fedadamw.models.vision import ImageModel
from fedadamw.prepare import images, texts
from fedadamw.prepare.architecture import CONFIG, is_run
from fedadamw.prepare.base import choose_weights, pin_type
from fedadamw.prepare.paths import MODEL_PATHS, check_origins
from fedadamw.prepare.personal import check_shared
from fedadamw.prepare.problem import MADE_IN_PYTHON, Facts, ImageFacts, TextFacts, open_pretrained
from fedadamw.settings.data import PYTHON
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load
from fedadamw.validation import InputError, check, parse_path
from fedadamw.vector import Layout, statistics, trainable

MANIFEST, STATE = "manifest.json", Path("checkpoint") / "state.safetensors"  # in a run's folder


class StartFacts(TypedDict):
    """Where the first weights of a run are from."""

    run: str  # the name of its folder
    round: int
    fingerprint: str  # of the weights


@dataclass(frozen=True, eq=False)
class Start:
    """The trained weights of another run."""

    name: str  # as model.name has it
    facts: StartFacts
    classes: Sequence[str]  # of its head
    weights: Mapping[str, Tensor]  # by the names of the model without adapters

    def load(self, model: nn.Module, classes: Sequence[str]) -> list[str]:
        """Copy the weights into `model`, for data of `classes`; return the modules of other shapes, which start fresh.

        Raises InputError if nothing fits.
        """
        own = model.state_dict()
        fits = {name for name, t in own.items() if name in self.weights and self.weights[name].shape == t.shape}
        with torch.no_grad():
            for name in fits:
                own[name].copy_(self.weights[name])
        fresh = sorted({name.rpartition(".")[0] for name in own.keys() - fits} - {""})
        with as_input_error(f"model.name={self.name!r}"):
            warn_if_fresh(model, fresh)
        self._warn_of_head(fresh, cast("Any", model).base_model_prefix, classes)
        return fresh

    def _warn_of_head(self, fresh: Sequence[str], body: str, classes: Sequence[str]) -> None:
        head = [name for name in fresh if not name.startswith(f"{body}.")]
        renamed = not head and len(self.classes) == len(classes) and list(self.classes) != list(classes)
        if head:
            change = f"{', '.join(head)} starts fresh: it had {len(self.classes)} classes, the data has {len(classes)}"
            warnings.warn(f"model.name={self.name!r}: {change}", stacklevel=3)
        elif renamed:
            change = f"the classes {', '.join(self.classes)} are renamed to {', '.join(classes)}"
            warnings.warn(f"model.name={self.name!r}: {change}", stacklevel=3)


def open_start(experiment: Experiment) -> Start | None:
    """Return the weights that the experiment starts from, if model.name is a run's folder."""
    name, best = experiment.model.name, experiment.model.best
    if not is_run(name) or experiment.model.fresh:
        return None
    path = parse_path("model.name", name)
    trained, manifest = load(str(path / CONFIG)), read_manifest(path)
    check(trained.data.task != PYTHON, f"{path / CONFIG}: {MADE_IN_PYTHON}")
    check_shared(trained, f"model.name={name!r}")
    check_origins(trained, manifest.get("folders"), MODEL_PATHS)
    check((path / STATE).is_file(), f"model.name={name!r}: the run has no checkpoint yet")
    tensors, about = checkpoint.read(path / STATE, "checkpoint")
    chosen, round_ = choose_round(f"model.name={name!r}", tensors, about["round"], best=best)
    facts = cast("Facts", manifest["data"])
    trained, pretrained = pin_type(trained, manifest["model"]), open_pretrained(trained)
    built = build_model(trained, pretrained, facts, open_start(trained) if trained.lora else None)
    load_tensors(built.model, chosen, manifest["model"]["layout"])
    dtype = choose_weights(trained, pretrained).dtype
    model: Any = built.model if trained.lora is None else merge(built.model, dtype)
    start: StartFacts = {"run": path.resolve().name, "round": round_, "fingerprint": _fingerprint(chosen)}
    return Start(name, start, tuple(facts["classes"]), model.state_dict())


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a run's folder; raises InputError if it does not describe the data."""
    try:
        manifest = dict(json.loads((path / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path / MANIFEST}: cannot be read ({error})") from None
    check("classes" in manifest.get("data", {}), f"{path / MANIFEST}: does not describe the data")
    return manifest


def choose_round(
    place: str, tensors: Mapping[str, Tensor], last: int, *, best: bool
) -> tuple[Mapping[str, Tensor], int]:
    """Return the tensors of the model of a checkpoint's last or best round, and that round. place: for errors."""
    if not best:
        return tensors, last
    kept = read_best(tensors)
    if kept is None:
        raise InputError(f"{place}: keeps no best round; a run keeps it with -s keep_best=true")
    return kept.model, kept.round


def build_model(
    experiment: Experiment, pretrained: Pretrained | None, facts: Facts, start: Start | None = None
) -> TextModel | ImageModel:
    """Build the experiment's model for data of `facts`, with the weights of `start`."""
    load_weights = None if start is None else start.load
    if experiment.data.is_text:
        return texts.build_model(experiment, pretrained, cast("TextFacts", facts), load_weights)
    return images.build_model(experiment, pretrained, cast("ImageFacts", facts), load_weights)


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], fingerprint: str) -> None:
    """Copy a checkpoint's tensors into the model, whose layout must have the `fingerprint`."""
    layout = Layout.of(model)
    check_same_layout(layout, fingerprint)
    floating = statistics(model)
    with torch.no_grad():
        for name, value in layout.views(tensors["server.x"]).items():
            trainable(model)[name].copy_(value)
        for name, value in Layout.of_tensors(floating).views(tensors["statistics"]).items():
            floating[name].copy_(value)
    if tensors["base"].numel():
        Folding(model).load(tensors["base"])


def check_same_layout(layout: Layout, fingerprint: str) -> None:
    """Raise InputError unless the layout of a model that was built again has this fingerprint."""
    check(
        fingerprint == layout.fingerprint,
        "the model that these settings build is not the one that was trained: another version of a library, or a "
        "changed folder",
    )


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in MODEL:
        digest.update(np.ascontiguousarray(tensors[name].numpy()).data)
    return digest.hexdigest()[:16]
