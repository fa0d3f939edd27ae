"""A trained model as a folder that transformers' and peft's `from_pretrained` load, with a model card."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedadamw.data.fitting import Fit
from fedadamw.data.pictures import CROP
from fedadamw.disk import new_folder
from fedadamw.escaping import in_markdown
from fedadamw.experiment import LANGUAGE, Experiment, Split
from fedadamw.models.loading import PACKAGE, is_hub_id, is_local
from fedadamw.models.vision import NAMES, RESNETS, Vision
from fedadamw.places import is_path, seen_from, tell_base, told, without_paths
from fedadamw.problems import images, texts
from fedadamw.trained import FACTS, Trained
from fedadamw.validation import InputError, check, path_of

OF_THEIR_OWN = ("EfficientNet", "MobileViT")  # image processors that do more than CLIP's to the pixels


def export(trained: Trained, to: Path, *, merged: bool = False, shared: bool = False) -> str:
    """Write the model to the new folder `to`, whole or not at all; what was written, in words.

    A model with adapters becomes an adapter, or with `merged` a whole model; one whose base nobody else has, since it
    was fresh or the exact mean has changed it, is always whole. shared: others shall load it, so an adapter's base
    must be of the hub.
    """
    experiment = trained.experiment
    to = to.absolute()
    check(
        experiment.model.name not in RESNETS,
        f"{experiment.model.name}: its stem and norms are not those of transformers' ResNet, which could not load it",
    )
    lora, name = experiment.lora, experiment.model.name
    nobody_has = experiment.model.fresh or name in NAMES  # the base, whose weights were drawn
    whole = lora is None or lora.aggregate == "exact" or nobody_has or merged
    check(
        whole or not is_local(name) or not shared,
        f"--push: the adapter's base {name!r} is on this machine alone; push the whole model with --merged",
    )
    with new_folder(to) as aside:
        _write(trained, aside, to, whole=whole)
    return "the whole model" if whole else "an adapter"


def _write(trained: Trained, folder: Path, to: Path, *, whole: bool) -> None:
    """Everything, into `folder`, which will be `to`."""
    experiment, model = trained.experiment, trained.model
    if experiment.lora is not None and whole:
        model = model.merge_and_unload()  # type: ignore[operator]
    if whole:
        _named_for_classes(model, trained)
        model.save_pretrained(folder)  # type: ignore[operator]
    else:
        model.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]
    if isinstance(trained.built, Vision):
        (folder / "preprocessor_config.json").write_text(json.dumps(_pixels(trained), indent=1) + "\n")
    else:
        try:
            texts.tokenizer_of(experiment).save_pretrained(folder)
        except ValueError as error:  # such as a chat template whose name is a path
            raise InputError(f"{folder}: its tokenizer cannot be written: {error}") from None
    tell_base(folder, told("model.name", experiment.model.name, to))
    settings, relative = without_paths(experiment.model_dump(mode="json"), to)
    facts = {"settings": settings, "relative": relative, **trained.facts, "records": trained.records[-1:]}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    (folder / "README.md").write_text(card(trained, to, whole=whole), encoding="utf-8")


def _named_for_classes(model: Any, trained: Trained) -> None:
    """The classes' names in the configuration of an image classifier with fresh weights."""
    classes = trained.about["classes"]
    if isinstance(trained.built, Vision):
        model.config.id2label = dict(enumerate(classes))
        model.config.label2id = {name: i for i, name in enumerate(classes)}


def _pixels(trained: Trained) -> dict[str, Any]:
    """How an image is made what the model takes, as transformers' image processors read it."""
    assert isinstance(trained.built, Vision)
    about, processor = trained.about, trained.built.processor
    data_channels, height, width = about["shape"]
    channels = trained.built.channels or data_channels
    fit = images.remaining_fit(trained.built, about) or Fit()
    output = fit.output((height, width))
    if processor.settings is not None:
        found = dict(processor.settings)
    else:
        found = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": output[0], "width": output[1]},
            "resample": fit.resample,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": _a_channel(about["mean"], channels),
            "image_std": _a_channel(about["std"], channels),
        }
    if channels == 3:
        found["do_convert_rgb"] = True
    cut = about.get("fit") == CROP and output[0] == output[1]
    return found | _square(output[0], found) if cut else found


def _a_channel(values: Sequence[float], channels: int) -> list[float]:
    return list(values) if len(values) == channels else list(values) * channels


def _square(side: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a processor that resizes the shorter side and cuts out the middle."""
    kind = settings["image_processor_type"]
    return {
        "image_processor_type": kind if kind.startswith(OF_THEIR_OWN) else "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": settings["resample"],
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
    }


def card(trained: Trained, to: Path, *, whole: bool) -> str:
    """The model card in the folder `to`: what it is, how it was trained, on what, and how it did."""
    experiment, facts = trained.experiment, trained.facts
    last: dict[str, Any] = next((r for r in reversed(trained.records) if r.get("test_metrics")), {})
    results = {"loss": last.get("test_loss"), **last.get("test_metrics", {})}
    head = {
        "library_name": "transformers" if whole else "peft",
        "tags": ["federated-learning", *sorted({"fedadamw", experiment.algorithm["name"]})],
        **({"base_model": experiment.model.name} if is_hub_id(experiment.model.name) else {}),
    }
    measured = {name: "-" if value is None else f"{value:.4f}" for name, value in results.items()}
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {experiment.data.task}, trained by {experiment.algorithm["name"]} over {clients_of(facts)} clients

Trained with [fedadamw]({HOME}) {facts["versions"].get("fedadamw")}, commit {facts.get("commit") or "unknown"}.

```python
{_code(trained, to, whole=whole)}
```

| held out, after round {last.get("round", 0)} | |
| --- | ---: |
{_rows(measured.items())}

| setting | |
| --- | --- |
{_rows(_settings(trained))}

| data | how much | fingerprint |
| --- | --- | --- |
{_rows(data_of(experiment, facts))}

All settings and versions are in `{FACTS}`.
"""


def _rows(rows: Iterable[Iterable[Any]]) -> str:
    """Rows of a table in Markdown."""
    return "\n".join(f"| {' | '.join(map(in_markdown, row))} |" for row in rows)


def clients_of(facts: Mapping[str, Any]) -> int:
    """How many clients trained the model, as far as is known: of a federation, those whose answers counted."""
    return int(facts["nodes"]["counted"] if "nodes" in facts else facts["partition"]["clients"])


def data_of(experiment: Experiment, facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Which data, how much of it, and its fingerprint; what nodes have is theirs alone, and told as they tell it."""
    data, partition = facts["data"], facts["partition"]
    train, test = ((f"{data[split]['samples']:,}", data[split]["fingerprint"]) for split in ("train", "test"))
    held_out = ("held-out data", *test)
    if experiment.partition.kind != "nodes":
        clients = f"{partition['clients']} clients"
        return [("training data", *train), held_out, ("partition", clients, partition["fingerprint"])]
    nodes = facts.get("nodes", {"counted": 0, "samples": None})
    samples = "not told" if nodes["samples"] is None else f"{nodes['samples']:,}, as the nodes tell"
    return [
        ("training data, on the nodes", samples, "not known to the server"),
        ("the server's own, not trained on", *train),
        held_out,
        ("partition", f"each of {nodes['counted']} nodes its own data", "not known to the server"),
    ]


def _code(trained: Trained, to: Path, *, whole: bool) -> str:
    """What loads the folder."""
    experiment = trained.experiment
    kind = "AutoModelForImageClassification" if isinstance(trained.built, Vision) else _auto(experiment.data.task)
    if whole:
        return f"from transformers import {kind}\n\nmodel = {kind}.from_pretrained(FOLDER)"
    head = f", num_labels={_outputs(trained)}, ignore_mismatched_sizes=True"  # the base's own may be of other classes
    wanted = "" if experiment.data.task == LANGUAGE else head
    needed, base = _base(experiment.model.name, to)
    return (
        f"{needed}from peft import PeftModel\nfrom transformers import {kind}\n\n"
        f"base = {kind}.from_pretrained({base}{wanted})\n"
        "model = PeftModel.from_pretrained(base, FOLDER)"
    )


def _base(name: str, to: Path) -> tuple[str, str]:
    """Lines that import what finds an adapter's base, and the expression for where it is."""
    if name.startswith(PACKAGE):
        package, _, inside = name.removeprefix(PACKAGE).partition("/")
        return "from importlib.resources import files\n\n", f"files({package!r}) / {inside!r}"
    place = told("model.name", name, to)
    if place != name and seen_from(to, path_of("model.name", name)) is not None:
        return "from pathlib import Path\n\n", f"Path(FOLDER) / {place!r}"
    return "", repr(place)


def _settings(trained: Trained) -> list[tuple[str, Any]]:
    """How the model was trained, in rows of words."""
    experiment, last = trained.experiment, trained.records[-1] if trained.records else {}
    t, facts = experiment.training, trained.facts
    sampled = f"{facts['partition']['clients']}, {t.clients_per_round} a round"
    counted = f"; answers of {facts['nodes']['counted']} counted" if "nodes" in facts else ""
    return [
        ("algorithm", _words(experiment.algorithm)),
        ("base", _name_of("model.name", experiment.model.name)),
        ("adapters", "none" if experiment.lora is None else _words(experiment.lora.model_dump(mode="json"))),
        ("data", f"{experiment.data.task}, {_name_of('data.source', experiment.data.source)}"),
        ("clients", f"{sampled}{counted}, split {_split(experiment.partition)}"),
        ("local work", f"{_work(t)}, batches of {t.batch_size}, learning rate {t.lr:g} ({t.schedule})"),
        ("rounds", f"{last.get('round', 0)} of {t.rounds}"),
        ("seed", experiment.seed),
    ]


def _name_of(setting: str, value: str) -> str:
    """A hub id, or the last name of a path of this machine."""
    return path_of(setting, value).resolve().name if is_path(setting, value) else value


HOME = "https://arxiv.org/abs/2510.27486"


def _auto(task: str) -> str:
    return "AutoModelForCausalLM" if task == LANGUAGE else "AutoModelForSequenceClassification"


def _outputs(trained: Trained) -> int:
    return 1 if trained.about.get("edges") is not None else len(trained.about["classes"])


def _split(partition: Split) -> str:
    """How the data is split, in words."""
    concentrated = partition.kind in ("dirichlet", "mix")
    return f"{partition.kind}, concentration {partition.concentration:g}" if concentrated else partition.kind


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _work(training: Any) -> str:
    return f"{training.steps} steps" if training.steps else f"{training.epochs} passes"


def push(folder: Path, repository: str) -> str:
    """Upload an exported folder to the hub repository `owner/name`, made where there is none; its address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        hub = HfApi()
        hub.create_repo(repository, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="fedadamw export"))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"--push {repository}: {why}; the folder {folder} is written") from None
