"""The model card of an exported model."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fedadamw.io.escaping import escape_markdown
from fedadamw.models.loading import PACKAGE, is_hub_id
from fedadamw.models.vision import Vision
from fedadamw.settings.data import LANGUAGE
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.partition import PartitionSettings
from fedadamw.settings.paths import is_path, make_portable, relative_path
from fedadamw.trained.load import FACTS, Trained
from fedadamw.validation import parse_path


def card(trained: Trained, to: Path, *, whole: bool) -> str:
    """The model card in the folder `to`: what it is, how it was trained, on what, and how it did."""
    experiment, facts = trained.experiment, trained.facts
    last = next((r for r in reversed(trained.records) if r.get("test_metrics")), None)
    results = {"loss": last.get("test_loss"), **(last["test_metrics"] or {})} if last else {"loss": None}
    head = {
        "library_name": "transformers" if whole else "peft",
        "tags": ["federated-learning", *sorted({"fedadamw", experiment.algorithm_name})],
        **({"base_model": experiment.model.name} if is_hub_id(experiment.model.name) else {}),
    }
    measured = {name: "-" if value is None else f"{value:.4f}" for name, value in results.items()}
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {experiment.data.task}, trained by {experiment.algorithm_name} over {clients_of(facts)} clients

Trained with [fedadamw]({HOME}) {facts["versions"].get("fedadamw")}, commit {facts.get("commit") or "unknown"}.

```python
{_code(trained, to, whole=whole)}
```

| held out, after round {last.get("round", 0) if last else 0} | |
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
    return "\n".join(f"| {' | '.join(map(escape_markdown, row))} |" for row in rows)


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
    place = make_portable("model.name", name, to)
    if place != name and relative_path(to, parse_path("model.name", name)) is not None:
        return "from pathlib import Path\n\n", f"Path(FOLDER) / {place!r}"
    return "", repr(place)


def _settings(trained: Trained) -> list[tuple[str, Any]]:
    """How the model was trained, in rows of words."""
    experiment, rounds = trained.experiment, trained.records[-1].get("round", 0) if trained.records else 0
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
        ("rounds", f"{rounds} of {t.rounds}"),
        ("seed", experiment.seed),
    ]


def _name_of(setting: str, value: str) -> str:
    """A hub id, or the last name of a path of this machine."""
    return parse_path(setting, value).resolve().name if is_path(setting, value) else value


HOME = "https://arxiv.org/abs/2510.27486"


def _auto(task: str) -> str:
    return "AutoModelForCausalLM" if task == LANGUAGE else "AutoModelForSequenceClassification"


def _outputs(trained: Trained) -> int:
    return 1 if trained.about.get("edges") is not None else len(trained.about["classes"])


def _split(partition: PartitionSettings) -> str:
    """How the data is split, in words."""
    concentrated = partition.kind in ("dirichlet", "mix")
    return f"{partition.kind}, concentration {partition.concentration:g}" if concentrated else partition.kind


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _work(training: Any) -> str:
    return f"{training.steps} steps" if training.steps else f"{training.epochs} passes"
