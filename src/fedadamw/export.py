"""A trained model as a folder that transformers' and peft's `from_pretrained` load, with a model card."""

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import yaml

from fedadamw.experiment import LANGUAGE, Split
from fedadamw.models.loading import PACKAGE, is_hub_id, is_local, place_of
from fedadamw.models.vision import NAMES, RESNETS, Vision
from fedadamw.problems import texts
from fedadamw.trained import FACTS, Trained
from fedadamw.validation import InputError, check


def export(trained: Trained, to: Path, *, merged: bool = False, shared: bool = False) -> str:
    """Write the model to the new folder `to`, whole or not at all; what was written, in words.

    A model with adapters becomes an adapter, or with `merged` a whole model; one whose base nobody else has, since it
    was fresh or the exact mean has changed it, is always whole. shared: others shall load it, so an adapter's base
    must be of the hub.
    """
    experiment = trained.experiment
    to = to.absolute()
    check(not to.exists() or (to.is_dir() and not any(to.iterdir())), f"{to}: exists; give a new folder")
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
    aside = to.with_name(f"{to.name}.{uuid.uuid4().hex[:8]}")
    aside.mkdir(parents=True)
    try:
        _write(trained, aside, whole=whole)
        if to.exists():
            to.rmdir()
        os.replace(aside, to)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return "the whole model" if whole else "an adapter"


def _write(trained: Trained, folder: Path, *, whole: bool) -> None:
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
        texts.tokenizer_of(experiment).save_pretrained(folder)
    settings = experiment.model_dump(mode="json")
    name = settings["model"]["name"]
    if not is_hub_id(name) and name not in NAMES and not name.startswith(PACKAGE):
        settings["model"]["name"] = str(Path(name).expanduser().absolute())
    facts = {"settings": settings, **trained.facts, "records": trained.records[-1:]}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    (folder / "README.md").write_text(card(trained, whole=whole))


def _named_for_classes(model: Any, trained: Trained) -> None:
    """The classes' names in the configuration of an image classifier with fresh weights."""
    classes = trained.about["classes"]
    if isinstance(trained.built, Vision):
        model.config.id2label = dict(enumerate(classes))
        model.config.label2id = {name: i for i, name in enumerate(classes)}


def _pixels(trained: Trained) -> dict[str, Any]:
    """How an image is made what the model takes, as transformers' image processors read it."""
    assert isinstance(trained.built, Vision)
    _, height, width = trained.about["shape"]
    size = trained.built.image_size
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": size or height, "width": size or width},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(trained.about["mean"]),
        "image_std": list(trained.about["std"]),
    }


def card(trained: Trained, *, whole: bool) -> str:
    """The model card: what it is, how it was trained, on what, and how it did."""
    experiment, facts = trained.experiment, trained.facts
    last: dict[str, Any] = next((r for r in reversed(trained.records) if r.get("test_metrics")), {})
    results = {"loss": last.get("test_loss"), **last.get("test_metrics", {})}
    head = {
        "library_name": "transformers" if whole else "peft",
        "tags": ["federated-learning", *sorted({"fedadamw", experiment.algorithm["name"]})],
        **({"base_model": experiment.model.name} if is_hub_id(experiment.model.name) else {}),
    }
    clients, data = facts["partition"]["clients"], facts["data"]
    prints = [
        ("training data", f"{data['train']['samples']:,}", data["train"]["fingerprint"]),
        ("held-out data", f"{data['test']['samples']:,}", data["test"]["fingerprint"]),
        ("partition", f"{clients} clients", facts["partition"]["fingerprint"]),
    ]
    measured = "\n".join(f"| {name} | {value:.4f} |" for name, value in results.items() if value is not None)
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {trained.experiment.data.task}, trained by {experiment.algorithm["name"]} over {clients} clients

Trained with [fedadamw]({HOME}) {facts["versions"].get("fedadamw")}, commit {facts.get("commit") or "unknown"}.

```python
{_code(trained, whole=whole)}
```

| held out, after round {last.get("round", 0)} | |
| --- | ---: |
{measured}

| setting | |
| --- | --- |
{chr(10).join(f"| {name} | {value} |" for name, value in _settings(trained))}

| data | how much | fingerprint |
| --- | --- | --- |
{chr(10).join(f"| {name} | {count} | `{digest}` |" for name, count, digest in prints)}

All settings and versions are in `{FACTS}`.
"""


def _code(trained: Trained, *, whole: bool) -> str:
    """What loads the folder."""
    experiment = trained.experiment
    kind = "AutoModelForImageClassification" if isinstance(trained.built, Vision) else _auto(experiment.data.task)
    if whole:
        return f"from transformers import {kind}\n\nmodel = {kind}.from_pretrained(FOLDER)"
    head = f", num_labels={_outputs(trained)}, ignore_mismatched_sizes=True"  # the base's own may be of other classes
    wanted = "" if experiment.data.task == LANGUAGE else head
    base = place_of("model.name", experiment.model.name)
    return (
        f"from peft import PeftModel\nfrom transformers import {kind}\n\n"
        f'base = {kind}.from_pretrained("{base}"{wanted})\n'
        "model = PeftModel.from_pretrained(base, FOLDER)"
    )


def _settings(trained: Trained) -> list[tuple[str, Any]]:
    """How the model was trained, in rows of words."""
    experiment, last = trained.experiment, trained.records[-1] if trained.records else {}
    t, clients = experiment.training, trained.facts["partition"]["clients"]
    return [
        ("algorithm", _words(experiment.algorithm)),
        ("base", experiment.model.name),
        ("adapters", "none" if experiment.lora is None else _words(experiment.lora.model_dump(mode="json"))),
        ("data", f"{experiment.data.task}, {experiment.data.source}"),
        ("clients", f"{clients}, {t.clients_per_round} a round, split {_split(experiment.partition)}"),
        ("local work", f"{_work(t)}, batches of {t.batch_size}, learning rate {t.lr:g} ({t.schedule})"),
        ("rounds", f"{last.get('round', 0)} of {t.rounds}"),
        ("seed", experiment.seed),
    ]


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
