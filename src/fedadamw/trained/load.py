"""A model that a run has trained, built again from its folder; or one that was exported, or anybody's."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedadamw import checkpoint
from fedadamw.engine.ledger import NAME as LEDGER
from fedadamw.engine.ledger import Page, read_page
from fedadamw.models.loading import config_from, in_one_line, loaded
from fedadamw.models.lora import Folding, with_adapter
from fedadamw.models.text import Text
from fedadamw.models.vision import Vision
from fedadamw.prepare import images, texts
from fedadamw.report.run_files import RecordDict
from fedadamw.runner.folder import RunFolder, check_pixels
from fedadamw.settings.data import LANGUAGE
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import build_experiment, load, parse_settings
from fedadamw.settings.paths import DATA_PATHS, MODEL_PATHS, check_origins, is_path, resolve_path, restore_paths
from fedadamw.validation import InputError, check, shorten
from fedadamw.vector import Layout, statistics, trainable

EVALUATED = (
    "device",
    "threads",
    "training.precision",
    "training.evaluate_batch",
)  # settings of an evaluation, besides its data
OF_ANYBODY = ("model.tokenizer", "model.pad_token")  # and of a model that comes without settings
BASE, ADAPTER = "model.name", "adapter_config.json"
FACTS = "fedadamw.json"  # in an exported folder: the run's settings and what is known of its data


class Trained(NamedTuple):
    """A model with its weights, and all that evaluating or exporting it needs."""

    experiment: Experiment
    built: Text | Vision
    about: Mapping[str, Any]  # of the data: see problems
    facts: Mapping[str, Any]  # the run's manifest; {} of somebody else's model
    records: list[RecordDict]
    other_data: bool  # than the run's own held-out samples is to be evaluated on

    @property
    def model(self) -> nn.Module:
        """The module, its weights in place."""
        return self.built.model


def opened(path: Path, given: list[tuple[str, Any]]) -> Trained:
    """The model of a run's folder, of an exported one, or of any that transformers loads; `given`: changed settings."""
    check(path.is_dir(), f"{path}: no such folder")
    anybodys = not RunFolder(path).started and not (path / FACTS).is_file()
    for setting, _ in given:
        known = setting.startswith("data.") or setting in EVALUATED or (anybodys and setting in OF_ANYBODY)
        known = known or (setting == BASE and (path / ADAPTER).is_file())  # its base may be in another place now
        check(known, f"{setting}: a model is evaluated as it is; what can be set is data.* and {', '.join(EVALUATED)}")
    if _of_data(given):  # all of it, unless they say how much: the run's own bound was for its evaluations
        given = [("data.max_test", None), *given]
    if RunFolder(path).started:
        return of_run(path, given)
    if (path / FACTS).is_file():
        return _of_exported(path, given)
    known = (path / "config.json").is_file()
    check(known, f"{path}: neither a run's folder (no config.yaml) nor a model's (no config.json)")
    return _of_anybody(path, given)


def of_run(path: Path, given: list[tuple[str, Any]] | None = None) -> Trained:
    """The model of a run's last checkpoint."""
    folder = RunFolder(path)
    check(folder.started, f"{path} holds no run (no config.yaml)")
    facts: dict[str, Any] = {**folder.read_manifest()}
    check(
        "classes" in facts.get("data", {}), f"{path}: the run was made by an earlier version; it cannot be built again"
    )
    check(folder.state.exists(), f"{path}: the run has no checkpoint yet")
    tensors, kept = checkpoint.read(folder.state, "checkpoint")
    own, other_data = load(str(folder.config)), _of_data(given or [])
    data = () if given is None or other_data else DATA_PATHS  # an export reads none
    check_origins(own, facts.get("folders"), (*MODEL_PATHS, *data))
    built = _built(own, facts["data"])
    if isinstance(built, Vision):
        check_pixels(path, facts["data"], images.pixels_of(built, facts["data"]))
    _put(built.model, tensors, facts)
    if LEDGER in tensors:
        facts["nodes"] = _nodes(read_page(tensors[LEDGER]))
    experiment = build_experiment(str(folder.config), given) if given else own
    _check_same_kind(own, experiment)
    records = folder.records()[: kept["round"]]  # a run that was killed may have recorded more
    return Trained(experiment, built, facts["data"], facts, records, other_data)


def _nodes(page: Page) -> dict[str, int | None]:
    """How many nodes of a federation had answers that counted, and how many samples these say they have in all."""
    told = [page.samples.get(client) for client in page.counted]
    known = [samples for samples in told if samples is not None]
    return {"counted": len(told), "samples": sum(known) if len(known) == len(told) else None}


def _built(experiment: Experiment, about: Mapping[str, Any]) -> Text | Vision:
    return texts.model_of(experiment, about) if experiment.data.is_text else images.model_of(experiment, about)


def _put(model: nn.Module, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """A checkpoint's numbers into the model."""
    layout = Layout.of(model)
    check(
        facts["model"]["layout"] == layout.fingerprint,
        "the model that these settings build is not the one that was trained: another version of a library, or a "
        "changed folder",
    )
    floating = statistics(model)
    with torch.no_grad():
        for name, value in layout.views(tensors["server.x"]).items():
            trainable(model)[name].copy_(value)
        for name, value in Layout.of_tensors(floating).views(tensors["statistics"]).items():
            floating[name].copy_(value)
    if tensors["base"].numel():
        Folding(model).load(tensors["base"])


def _of_exported(path: Path, given: list[tuple[str, Any]]) -> Trained:
    try:
        facts = json.loads((path / FACTS).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path / FACTS}: cannot be read ({error})") from None
    given, base = [pair for pair in given if pair[0] != BASE], dict(given).get(BASE)
    with in_one_line(f"{path / FACTS}: does not tell of a model"):
        settings, about = restore_paths(facts["settings"], facts.get("relative", []), path), facts["data"]
        if base is not None:
            settings["model"]["name"] = base
        if settings["model"]["tokenizer"] is not None:
            settings["model"]["tokenizer"] = str(path.resolve())  # the exported one
        experiment = parse_settings(settings)
        _check_numbers(about, ("edges",) if experiment.data.is_text else ("mean", "std"))
        if (path / ADAPTER).is_file():
            _check_base(path, experiment.model.name)
            built = _built(parse_settings({**settings, "lora": None}), about)
            built = built._replace(model=with_adapter(built.model, path))
        else:
            own = {**settings["model"], "name": str(path.resolve()), "tokenizer": None, "fresh": False}
            experiment = parse_settings({**settings, "lora": None, "model": own})
            built = _built(experiment, about)
    changed = _changed(experiment, given)
    _check_same_kind(experiment, changed)
    return Trained(changed, built, about, facts, facts.get("records", []), _of_data(given))


def _check_numbers(about: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise whatever it be where one of `names` is in place of numbers something else."""
    for name in names:
        for number in about[name] or ():
            check(isinstance(number, int | float), f"{name} has {shorten(number)}, which is no number")


def _check_base(path: Path, name: str) -> None:
    """Raise InputError where the folder of an adapter's base is not where the export says."""
    moved = is_path(BASE, name) and not resolve_path(BASE, name).is_dir()
    check(not moved, f"{path}: its base {Path(name).name} is not at {name}; give its folder: -s model.name=DIR")


def _of_anybody(path: Path, given: list[tuple[str, Any]]) -> Trained:
    labels = loaded("model", str(path.resolve()), config_from).id2label
    classes = [str(labels[i]) for i in sorted(labels)]
    experiment = _changed(parse_settings({"model": {"name": str(path.resolve())}}), given)
    check(experiment.data.is_text, f"{path}: say what it is to be evaluated on, for example -s data.task=sst2")
    about = {"classes": classes, "edges": [] if len(classes) == 1 else None}
    built = _built(experiment, about)
    fresh = built.fresh if isinstance(built, Text) else ()
    check(
        not fresh,
        f"{path}: has no trained weights of {', '.join(fresh)}; it is no model of data.task={experiment.data.task}",
    )
    return Trained(experiment, built, about, {}, [], other_data=True)


def _check_same_kind(trained: Experiment, changed: Experiment) -> None:
    """Raise InputError where a model is to do something of another kind than it was trained for."""
    task, wanted = trained.data.task, changed.data.task
    same = (task == LANGUAGE) == (wanted == LANGUAGE) and trained.data.is_text == changed.data.is_text
    check(same, f"data.task={wanted!r}: the model was trained for {task!r}")


def _of_data(given: list[tuple[str, Any]]) -> bool:
    return any(path.startswith("data.") for path, _ in given)


def _changed(experiment: Experiment, given: list[tuple[str, Any]]) -> Experiment:
    from fedadamw.settings.load import set_path

    settings = experiment.model_dump(mode="json")
    for path, value in given:
        set_path(settings, path, value)
    return parse_settings(settings)
