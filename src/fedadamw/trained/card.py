"""The model card of an exported model."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedadamw.io.escaping import escape_markdown
from fedadamw.models.gguf import is_gguf, split_gguf
from fedadamw.models.loading import PACKAGE, is_hub_id
from fedadamw.models.vision import ImageModel
from fedadamw.prepare.paths import is_path, make_portable, relative_path
from fedadamw.report.metrics import find_score, main_metric, metrics_of, name_score
from fedadamw.report.run_files import RecordDict
from fedadamw.settings.data import LANGUAGE, DataSettings
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.lora import LoraSettings
from fedadamw.settings.partition import PartitionSettings
from fedadamw.settings.training import TrainingSettings
from fedadamw.trained.load import FACTS, Origin, Trained
from fedadamw.validation import parse_path

SHOWN_CLASSES = 20


def write_card(trained: Trained, to: Path, *, whole: bool) -> str:
    """Return the model card for the folder `to`: what the model is, how and on what it was trained, and its results."""
    experiment, origin = trained.experiment, trained.origin
    last, results = find_results(trained.records)
    by = ", chosen by this result" if trained.best else ""
    if client := origin.get("client"):
        last, results, by = client["round"] or 0, client["scores"] or {"loss": None}, " by this client"
    head = {
        "library_name": "transformers" if whole else "peft",
        "tags": ["federated-learning", *sorted({"fedadamw", experiment.algorithm_name})],
        **({"base_model": split_gguf(experiment.model.name)[0]} if is_hub_id(experiment.model.name) else {}),
    }
    if not last and client is None and experiment.data.classes is not None:
        results = {"not evaluated: the server has no data": None}
    scores = {name: "-" if value is None else f"{value:.4f}" for name, value in results.items()}
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {experiment.data.task}, trained by {experiment.algorithm_name} over {count_clients(origin)} clients

Trained with [fedadamw]({HOME}) {origin["versions"].get("fedadamw")}, commit {origin.get("commit") or "unknown"}.

```python
{_code(trained, to, whole=whole)}
```

| held out, after round {last}{by} | |
| --- | ---: |
{_rows(scores.items())}

| setting | |
| --- | --- |
{_rows(_settings(trained))}

| data | how much | fingerprint |
| --- | --- | --- |
{_rows(list_data(experiment, origin))}

All settings and versions are in `{FACTS}`.
"""


def find_results(records: Sequence[RecordDict]) -> tuple[int, Mapping[str, float | None]]:
    """Return the round of the last evaluation, 0 before one, and its results: of the model, or over the clients."""
    of = find_score(records)
    last = next((r for r in reversed(records) if metrics_of(r, of)), None)
    if last is None:
        return 0, {"loss": None}
    if of == "test":
        return last["round"], {"loss": last["test_loss"], **(last["test_metrics"] or {})}
    name = main_metric(records, of)
    clients = {name_score(name, "clients_mean"): last.get("clients_mean")}
    return last["round"], clients | {name_score(name, "clients_worst_decile"): last.get("clients_worst_decile")}


def _rows(rows: Iterable[Iterable[Any]]) -> str:
    """Return the rows of a table in Markdown."""
    return "\n".join(f"| {' | '.join(map(escape_markdown, row))} |" for row in rows)


def count_clients(origin: Origin) -> int:
    """Return how many clients trained the model; in a federation, those with an accepted answer."""
    return int(origin["nodes"]["counted"] if "nodes" in origin else origin["partition"]["clients"])


def list_data(experiment: Experiment, origin: Origin) -> list[tuple[str, str, str]]:
    """Return the data, how much it is, and its fingerprint; for the nodes' own data, only what the nodes report."""
    data, partition = origin["data"], origin["partition"]
    train, test = ((f"{data[split]['samples']:,}", data[split]["fingerprint"]) for split in ("train", "test"))
    held_out = ("held-out data", *test)
    if experiment.partition.kind != "nodes":
        clients = f"{partition['clients']} clients"
        return [("training data", *train), held_out, ("partition", clients, partition["fingerprint"])]
    nodes = origin.get("nodes", {"counted": 0, "samples": None})
    of_server = [("the server's own, not trained on", *train), held_out] if experiment.data.classes is None else []
    samples = "not reported" if nodes["samples"] is None else f"{nodes['samples']:,}, as the nodes report"
    return [
        ("training data, on the nodes", samples, "not known to the server"),
        *of_server,
        ("partition", f"each of {nodes['counted']} nodes its own data", "not known to the server"),
    ]


def _code(trained: Trained, to: Path, *, whole: bool) -> str:
    """Return Python code that loads the folder."""
    experiment = trained.experiment
    is_image = isinstance(trained.built, ImageModel)
    kind = "AutoModelForImageClassification" if is_image else _auto_class(experiment.data.task)
    if whole:
        return f"from transformers import {kind}\n\nmodel = {kind}.from_pretrained(FOLDER)"
    head = f", num_labels={_count_outputs(trained)}, ignore_mismatched_sizes=True"  # the base's may have other classes
    arguments = "" if experiment.data.task == LANGUAGE else head
    imports, base = _base(experiment.model.name, to)
    return (
        f"{imports}from peft import PeftModel\nfrom transformers import {kind}\n\n"
        f"base = {kind}.from_pretrained({base}{arguments})\n"
        "model = PeftModel.from_pretrained(base, FOLDER)"
    )


def _base(name: str, to: Path) -> tuple[str, str]:
    """Return the imports and the arguments of from_pretrained for an adapter's base."""
    if not is_gguf(name):
        return _place(name, to)
    folder, _, file = name.rpartition("/")
    if is_hub_id(name):
        folder, file = split_gguf(name)[0], split_gguf(name)[1]["gguf_file"]
    imports, place = _place(folder or ".", to)
    return imports, f"{place}, gguf_file={file!r}"


def _place(name: str, to: Path) -> tuple[str, str]:
    """Return the imports and the expression for a model's folder or hub id."""
    if name.startswith(PACKAGE):
        package, _, inside = name.removeprefix(PACKAGE).partition("/")
        return "from importlib.resources import files\n\n", f"files({package!r})" + (f" / {inside!r}" if inside else "")
    place = make_portable("model.name", name, to)
    if place != name and relative_path(to, parse_path("model.name", name)) is not None:
        return "from pathlib import Path\n\n", f"Path(FOLDER) / {place!r}"
    return "", repr(place)


def _settings(trained: Trained) -> list[tuple[str, Any]]:
    """Return the settings that the card shows, by name."""
    experiment, rounds = trained.experiment, trained.records[-1].get("round", 0) if trained.records else 0
    t, origin = experiment.training, trained.origin
    sampled = f"{origin['partition']['clients']}, {t.clients_per_round} a round"
    counted = f"; answers of {origin['nodes']['counted']} counted" if "nodes" in origin else ""
    return [
        ("algorithm", _words(experiment.algorithm)),
        ("base", _name_of("model.name", experiment.model.name)),
        ("adapters", _describe_adapters(experiment.lora)),
        *([("client", f"{origin['client']['client']}, with parameters of its own")] if "client" in origin else []),
        ("data", f"{experiment.data.task}, {_name_data(experiment.data)}"),
        ("clients", f"{sampled}{counted}, partitioned {_partition(experiment.partition)}"),
        ("local work", f"{_work(t)}, batches of {t.batch_size}, learning rate {t.lr:g} ({t.schedule})"),
        ("rounds", f"{rounds} of {t.rounds}"),
        ("seed", experiment.seed),
    ]


def _name_data(data: DataSettings) -> str:
    """Return the name of the data's source, or the classes of data that only nodes have."""
    if data.classes is None:
        return _name_of("data.source", data.source)
    named = ", ".join(data.classes) if len(data.classes) <= SHOWN_CLASSES else f"{len(data.classes):,} in all"
    return f"of classes {named}" if data.classes else "only on nodes"


def _name_of(setting: str, value: str) -> str:
    """Return a hub id, or the last part of a path on this machine."""
    return parse_path(setting, value).resolve().name if is_path(setting, value) else value


HOME = "https://arxiv.org/abs/2510.27486"


def _auto_class(task: str) -> str:
    return "AutoModelForCausalLM" if task == LANGUAGE else "AutoModelForSequenceClassification"


def _count_outputs(trained: Trained) -> int:
    return 1 if trained.facts.get("edges") is not None else len(trained.facts["classes"])


def _partition(partition: PartitionSettings) -> str:
    """Describe the partition in words."""
    concentrated = partition.kind in ("dirichlet", "mix")
    return f"{partition.kind}, concentration {partition.concentration:g}" if concentrated else partition.kind


def _describe_adapters(lora: LoraSettings | None) -> str:
    """Return the settings of the adapters, without those that are off or empty."""
    if lora is None:
        return "none"
    settings = lora.model_dump(mode="json").items()
    return _words(
        {name: value for name, value in settings if not (value is None or value is False or value in ([], {}))}
    )


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _work(training: TrainingSettings) -> str:
    return f"{training.steps} steps" if training.steps else f"{training.epochs} passes"
