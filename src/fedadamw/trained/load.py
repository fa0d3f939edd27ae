"""Load a trained model: a run folder, an export, or any transformers folder."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

from torch import nn

from fedadamw import checkpoint
from fedadamw.engine.ledger import TENSOR_NAME as LEDGER
from fedadamw.engine.ledger import Page, read_page
from fedadamw.models.dtypes import name_of
from fedadamw.models.gguf import is_gguf
from fedadamw.models.heads import class_names
from fedadamw.models.loading import as_input_error, locate
from fedadamw.models.lora.adapters import load_adapter
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.text import TextModel
from fedadamw.models.vision import ImageModel
from fedadamw.prepare import images, texts
from fedadamw.prepare.base import choose_weights, pin_type, with_type
from fedadamw.prepare.paths import DATA_PATHS, MODEL_PATHS, check_origins, is_path, resolve_path, restore_paths
from fedadamw.prepare.personal import check_shared
from fedadamw.prepare.problem import MADE_IN_PYTHON, Facts, ImageFacts, TextFacts, open_pretrained
from fedadamw.prepare.start import build_model, choose_round, load_tensors, open_start
from fedadamw.report.run_files import ModelFacts, PartitionFacts, RecordDict
from fedadamw.runner.folder import RunFolder, check_pixels
from fedadamw.settings.data import LANGUAGE, PYTHON
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import build_experiment, load, parse_settings, set_path
from fedadamw.settings.model import AUTO
from fedadamw.trained.client_model import ClientFacts, Run, load_client
from fedadamw.validation import InputError, check, shorten

EVALUATION_SETTINGS = ("device", "threads", "training.precision", "training.evaluate_batch")  # besides data.*
OWN_SETTINGS = (
    "model.tokenizer",
    "model.pad_token",
    "model.dtype",
    "model.quantize",
)  # also of a model that comes without settings
BASE, ADAPTER = "model.name", "adapter_config.json"
FACTS = "fedadamw.json"  # in an exported folder: an ExportFacts
ANSWER_SETTINGS = ("data.metrics", "data.answers", "data.answer_tokens", "data.choices")  # of the same held-out texts
Overrides = Sequence[tuple[str, object]]  # settings and their new values


class NodeCounts(TypedDict):
    """The nodes of a federation."""

    counted: int  # nodes with an accepted answer
    samples: int | None  # that these report; None unless all do


class Origin(TypedDict, total=False):
    """How a model was trained: its run's manifest.json, and the nodes of a federation."""

    versions: dict[str, str | None]
    commit: str | None
    data: dict[str, Any]  # Facts; and samples and fingerprint of `train` and `test`
    folders: list[str]
    partition: PartitionFacts
    model: ModelFacts
    nodes: NodeCounts
    client: ClientFacts  # whose own model it is, if it is one's


class ExportFacts(Origin, total=False):
    """What an exported folder records of its model."""

    settings: dict[str, Any]
    relative: list[str]  # settings that are paths relative to the folder
    records: list[RecordDict]  # of the last round


class Trained(NamedTuple):
    """A model with its weights, and all that evaluating or exporting it needs."""

    experiment: Experiment
    pretrained: Pretrained | None
    built: TextModel | ImageModel
    facts: Facts  # of the training data
    origin: Origin  # {} if unknown
    records: list[RecordDict]
    other_data: bool  # whether it is evaluated on other data than its run's held-out samples
    best: bool = False  # whether it is the best of its run's rounds, by their own evaluations

    @property
    def model(self) -> nn.Module:
        """The module with the trained weights."""
        return self.built.model


def open_trained(path: Path, overrides: Overrides = (), *, best: bool = False) -> Trained:
    """Load the model of a run folder, an export, any transformers folder or .gguf file, to evaluate it.

    best: see `open_run`.
    """
    if is_gguf(str(path)):
        return _open_file(path, overrides, best=best)
    check(path.is_dir(), f"{path}: no such folder")
    is_run, is_export = RunFolder(path).started, (path / FACTS).is_file()
    _check_overrides(path, overrides, without_settings=not (is_run or is_export))
    if _has_data(overrides):  # use all of that data unless max_test is given; the run's max_test is for its own data
        overrides = [("data.max_test", None), *overrides]
    if is_run:
        return open_run(path, overrides, best=best)
    check(not best, f"--best: {path} is no run's folder; it holds one model")
    if is_export:
        return _open_export(path, overrides)
    is_model = (path / "config.json").is_file()
    check(is_model, f"{path}: neither a run's folder (no config.yaml) nor a model's (no config.json)")
    return _open_foreign(path, str(path.resolve()), overrides)


def _open_file(path: Path, overrides: Overrides, *, best: bool) -> Trained:
    """Load a .gguf file, which may be package:NAME/FILE.gguf; a language model if the data are not said."""
    check(not best, f"--best: {path} is no run's folder; it holds one model")
    _check_overrides(path, overrides, without_settings=True)
    kind: Overrides = [("data.task", LANGUAGE), ("data.max_test", None)]
    return _open_foreign(path, locate("model.name", str(path)), [*kind, *overrides])


def _check_overrides(path: Path, overrides: Overrides, *, without_settings: bool) -> None:
    """Raise InputError if an override would change the model."""
    allowed: Iterable[str] = EVALUATION_SETTINGS + (OWN_SETTINGS if without_settings else ())
    for setting, _ in overrides:
        is_base = setting == BASE and (path / ADAPTER).is_file()  # an adapter's base may have moved
        check(
            setting.startswith("data.") or setting in allowed or is_base,
            f"{setting}: would change the model; an evaluation can set data.* and {', '.join(EVALUATION_SETTINGS)}",
        )


def open_run(
    path: Path, overrides: Overrides | None = None, *, best: bool = False, client: int | None = None
) -> Trained:
    """Load the model of a run's last checkpoint; best: of the best round, which keep_best keeps.

    overrides: None if no data will be read, as for an export. client: whose own model it is; None: the global one.
    """
    folder = RunFolder(path)
    check(folder.started, f"{path} holds no run (no config.yaml)")
    check(client is None or not best, f"--client {client}: clients keep their parameters of the last round; no --best")
    origin = cast("Origin", folder.read_manifest())
    check("classes" in origin.get("data", {}), f"{folder.manifest}: does not describe the data")
    check(folder.state.exists(), f"{path}: the run has no checkpoint yet")
    tensors, state = checkpoint.read(folder.state, "checkpoint")
    experiment, other_data = load(str(folder.config)), _has_data(overrides or ())
    check(experiment.data.task != PYTHON, f"{folder.config}: {MADE_IN_PYTHON}")
    data_settings = () if overrides is None or other_data else DATA_PATHS
    check_origins(experiment, origin.get("folders"), (*MODEL_PATHS, *data_settings))
    experiment = pin_type(experiment, origin["model"])
    facts, pretrained = cast("Facts", origin["data"]), open_pretrained(experiment)
    start = open_start(experiment) if experiment.lora else None  # whose weights are below the adapters
    same = start is None or start.facts == origin["model"].get("start")
    check(same, f"{path}: the run that it started from has changed since")
    built = build_model(experiment, pretrained, facts, start)
    if isinstance(built, ImageModel):
        check_pixels(path, origin["data"], images.with_own_pixels(built, cast("ImageFacts", facts)))
    model, round_ = choose_round(str(path), tensors, state["round"], best=best)
    if client is None:
        check_shared(experiment, str(path))
        load_tensors(built.model, model, origin["model"]["layout"])
    else:
        clients = origin["partition"]["clients"]
        run = Run(experiment, clients, tensors, round_, origin["model"]["layout"])
        origin["client"] = load_client(path, run, built.model, client)
    if pages := [read_page(t) for name, t in tensors.items() if name.split(".")[-1] == LEDGER]:  # two, with halves
        origin["nodes"] = _count_nodes(*pages)
    changed = build_experiment(str(folder.config), overrides) if overrides else experiment
    changed = pin_type(changed, origin["model"])
    _check_same_kind(experiment, changed)
    records = folder.records()[:round_]  # a killed run may have recorded more
    return Trained(changed, pretrained, built, facts, origin, records, other_data, best)


def _count_nodes(*pages: Page) -> NodeCounts:
    counted = {client for page in pages for client in page.counted}
    reported = {client: count for page in pages for client, count in page.samples.items()}
    samples = [reported.get(client) for client in counted]
    known = [count for count in samples if count is not None]
    return {"counted": len(samples), "samples": sum(known) if len(known) == len(samples) else None}


def _open_export(path: Path, overrides: Overrides) -> Trained:
    """Load an exported whole model, or an exported adapter on its base."""
    try:
        origin: ExportFacts = json.loads((path / FACTS).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path / FACTS}: cannot be read ({error})") from None
    base = dict(overrides).get(BASE)
    overrides = [pair for pair in overrides if pair[0] != BASE]
    with as_input_error(f"{path / FACTS}: does not describe a model"):
        settings, facts = restore_paths(origin["settings"], origin.get("relative", []), path), origin["data"]
        if base is not None:
            settings["model"]["name"] = base
        if settings["model"]["tokenizer"] is not None:
            settings["model"]["tokenizer"] = str(path.resolve())  # the exported one
        _check_numbers(facts, ("edges",) if parse_settings(settings).data.is_text else ("mean", "std"))
        opened = _open_exported_adapter if (path / ADAPTER).is_file() else _open_exported_model
        pinned = pin_type(parse_settings(settings), origin.get("model", {})).model_dump(mode="json")
        experiment, pretrained, built = opened(path, pinned, cast("Facts", facts))
    changed = _with_overrides(experiment, overrides)
    _check_same_kind(experiment, changed)
    records = origin.get("records", [])
    return Trained(changed, pretrained, built, cast("Facts", facts), origin, records, _has_data(overrides))


Opened = tuple[Experiment, Pretrained | None, TextModel | ImageModel]


def _open_exported_adapter(path: Path, settings: Mapping[str, Any], facts: Facts) -> Opened:
    experiment = parse_settings(settings)
    _check_base(path, experiment.model.name)
    pretrained = open_pretrained(experiment)
    dtype = choose_weights(experiment, pretrained).dtype
    frozen = with_type(experiment, name_of(dtype)).model_copy(update={"lora": None})
    base = build_model(frozen, pretrained, facts)
    return experiment, pretrained, base._replace(model=load_adapter(base.model, path, dtype))


def _open_exported_model(path: Path, settings: Mapping[str, Any], facts: Facts) -> Opened:
    own: dict[str, Any] = {"tokenizer": None, "fresh": False, "best": False, "dtype": "auto", "quantize": "none"}
    model = {**settings["model"], "name": str(path.resolve()), **own}
    experiment = parse_settings({**settings, "lora": None, "model": model})
    pretrained = open_pretrained(experiment)
    if pretrained is not None:
        experiment = with_type(experiment, name_of(pretrained.dtype))
    return experiment, pretrained, build_model(experiment, pretrained, facts)


def _check_numbers(facts: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise InputError or TypeError if one of `names` holds anything but numbers."""
    for name in names:
        for number in facts[name] or ():
            check(isinstance(number, int | float), f"{name} has {shorten(number)}, which is not a number")


def _check_base(path: Path, name: str) -> None:
    """Raise InputError if an adapter's base is not in the folder that the export names."""
    moved = is_path(BASE, name) and not resolve_path(BASE, name).exists()
    what = "file: -s model.name=FILE" if is_gguf(name) else "folder: -s model.name=DIR"
    check(not moved, f"{path}: its base {Path(name).name} is not at {name}; give its {what}")


def _open_foreign(path: Path, name: str, overrides: Overrides) -> Trained:
    """Load a model without settings, a text classifier or language model; name: as of model.name."""
    experiment = _with_overrides(parse_settings({"model": {"name": name}}), overrides)
    pretrained = Pretrained(experiment.model.name, experiment.model.tokenizer, experiment.model.pad_token)
    if experiment.model.dtype == AUTO:
        experiment = with_type(experiment, name_of(pretrained.dtype))  # nothing is trained
    classes = class_names(pretrained)
    check(experiment.data.is_text, f"{path}: name the data to evaluate it on, for example -s data.task=sst2")
    facts: TextFacts = {"classes": classes, "edges": [] if len(classes) == 1 else None}
    built = texts.build_model(experiment, pretrained, facts)
    check(
        not built.fresh,
        f"{path}: has no trained weights of {', '.join(built.fresh)}; it is not a model for "
        f"data.task={experiment.data.task}",
    )
    return Trained(experiment, pretrained, built, facts, {}, [], other_data=True)


def _check_same_kind(trained: Experiment, changed: Experiment) -> None:
    """Raise InputError if overrides ask for another kind of task than the model was trained for."""
    trained_task, task = trained.data.task, changed.data.task
    same = (trained_task == LANGUAGE) == (task == LANGUAGE) and trained.data.is_text == changed.data.is_text
    check(same, f"data.task={task!r}: the model was trained for {trained_task!r}")


def _has_data(overrides: Overrides) -> bool:
    return any(setting.startswith("data.") and setting not in ANSWER_SETTINGS for setting, _ in overrides)


def _with_overrides(experiment: Experiment, overrides: Overrides) -> Experiment:
    settings = experiment.model_dump(mode="json")
    for setting, value in overrides:
        set_path(settings, setting, value)
    return parse_settings(settings)
