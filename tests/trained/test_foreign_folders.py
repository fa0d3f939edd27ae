"""Models' folders that somebody else made: those with code of their own, and those that are damaged."""

import ast
import builtins
import json
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from support import tiny_models

import fedadamw
from fedadamw.models import text, vision
from fedadamw.models.dtypes import Weights
from fedadamw.models.loading import as_input_error, locate
from fedadamw.models.lora.adapters import load_adapter
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.skeleton import build_skeleton
from fedadamw.settings.load import load
from fedadamw.trained.load import open_trained
from fedadamw.validation import InputError

FRESH = Weights(fresh=True)
CODE = """
from pathlib import Path

from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

Path({marker!r}).touch()


class Config(BertConfig):
    model_type = "its-own"


class Model(BertForSequenceClassification):
    config_class = Config


class Words(PreTrainedTokenizerFast):
    pass
"""
CLASSES = {
    "AutoConfig": "own.Config",
    **dict.fromkeys(("AutoModel", "AutoModelForSequenceClassification", "AutoModelForCausalLM"), "own.Model"),
    "AutoModelForImageClassification": "own.Model",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    for kind in ("bert", "llama"):
        tiny_models.folder(path / kind, kind, template=tiny_models.TEMPLATE)
    tiny_models.reviews(path / "reviews.csv")
    return path


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole / "bert", tmp_path / "model")


@pytest.fixture
def marker(folder, tmp_path, monkeypatch):
    """A file that is there once the folder's code has run; whoever is asked for leave says yes, as `yes |` does."""
    monkeypatch.setattr(builtins, "input", lambda *_: "yes")
    path = tmp_path / "the folder's code has run"
    (folder / "own.py").write_text(CODE.format(marker=str(path)))
    return path


def change(path: Path, **settings) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def classifier(folder: Path) -> text.TextModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return text.build_classifier(Pretrained(str(folder)), ["a", "b"], 32)


USES = {
    "a classifier": classifier,
    "a fresh classifier": lambda folder: text.build_classifier(Pretrained(str(folder)), ["a", "b"], 32, FRESH),
    "a language model": lambda folder: text.build_language_model(Pretrained(str(folder)), 32),
    "an image classifier": lambda folder: vision.build_pretrained(Pretrained(str(folder)), vision.ImageShape(16, 3, 2)),
    "a tokenizer": lambda folder: Pretrained(str(folder)).tokenizer,
    "its blocks": lambda folder: build_skeleton(str(folder)),
    "its evaluation": lambda folder: open_trained(folder, [("data.task", "sst2")]),
}


@pytest.mark.parametrize("use", USES)
def test_a_folders_own_code_is_named_and_never_run(folder, marker, use):
    change(folder / "config.json", model_type="its-own", auto_map=CLASSES)
    with pytest.raises(InputError, match=r"needs custom code \(own.py\), which is never run") as found:
        USES[use](folder)
    assert str(folder) in str(found.value)
    assert not marker.exists()


def test_a_tokenizers_own_code_is_named_and_never_run(whole, folder, marker):
    (folder / "config.json").write_bytes((whole / "llama" / "config.json").read_bytes())
    change(folder / "tokenizer_config.json", tokenizer_class="Words", auto_map={"AutoTokenizer": [None, "own.Words"]})
    with pytest.raises(InputError, match=r"its tokenizer needs custom code \(own.py\), which is never run"):
        _ = Pretrained(str(folder)).tokenizer
    assert not marker.exists()


def test_a_model_that_transformers_knows_is_loaded_without_the_code_beside_it(folder, marker):
    change(folder / "config.json", auto_map=CLASSES)
    assert type(classifier(folder).model).__module__.startswith("transformers.models.bert")
    assert not marker.exists()


def test_a_run_of_such_a_folder_ends_with_one_line(whole, folder, marker, run_main):
    change(folder / "config.json", model_type="its-own", auto_map=CLASSES)
    data = ("-s", "data.task=text", "-s", f"data.source={whole / 'reviews.csv'}", "-s", "data.validation=0.2")
    done = run_main(
        "run", "digits", *data, "-s", f"model={folder}", "--ranks", "1", "--out", str(folder.parent / "run")
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "needs custom code" in done.stderr
    assert not marker.exists()


def test_all_that_transformers_loads_is_loaded_in_one_place_and_without_code():
    """Whoever calls from_pretrained or from_config elsewhere, or without the word, fails here."""
    found = []
    for path in Path(fedadamw.__file__).parent.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        calls = {id(node.func): node for node in nodes if isinstance(node, ast.Call)}
        for node in nodes:
            if isinstance(node, ast.Attribute) and node.attr in ("from_pretrained", "from_config"):
                words = {word.arg: ast.unparse(word.value) for word in getattr(calls.get(id(node)), "keywords", ())}
                found.append((path.name, ast.unparse(node), words.get("trust_remote_code")))
    found.remove(("adapters.py", "PeftModel.from_pretrained", None))  # an adapter has no code
    found.remove(("gguf.py", "PreTrainedTokenizerFast.from_pretrained", None))  # nor has such a file
    found.remove(("gguf.py", "AutoConfig.from_pretrained", "False"))
    assert {(name, trusted) for name, _, trusted in found} == {("loading.py", "False")}
    assert len(found) == 6


@pytest.mark.parametrize("named", ["pipeline", "BertConfig", "AutoModel", "logging", "__loader__", 7])
def test_what_a_folder_calls_its_class_is_looked_up_among_models_alone(folder, named):
    change(folder / "config.json", architectures=[named])
    assert type(build_skeleton(str(folder))).__name__ == "BertForSequenceClassification"


def test_a_package_in_a_setting_is_looked_up_and_not_imported(tmp_path, monkeypatch):
    (tmp_path / "somebodys" / "inner" / "model").mkdir(parents=True)
    for init in (tmp_path / "somebodys" / "__init__.py", tmp_path / "somebodys" / "inner" / "__init__.py"):
        init.write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, inside in (("somebodys", "inner/model"), ("somebodys.inner", "model")):
        assert locate("model.name", f"package:{name}/{inside}") == str(tmp_path / "somebodys" / "inner" / "model")
    for name in ("somebodys.other", "nobodys", ".somebodys", "", "__main__", "sys"):
        with pytest.raises(InputError, match="no package .* is installed"):
            locate("model.name", f"package:{name}/model")
    assert not {"somebodys", "somebodys.inner"} & set(sys.modules)


# Damage


def cut(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


def sharded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {"bert.pooler.dense.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def normalised_by(folder: Path, **normalizer) -> None:
    change(folder / "tokenizer.json", normalizer=normalizer)


BITS = {"quant_method": "bitsandbytes", "load_in_8bit": True}
DAMAGES = {
    "no configuration": (lambda f: cut(f, "config.json"), "config.json' is not a valid JSON file"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "Unrecognized model"),
    "nothing but brackets": (lambda f: (f / "config.json").write_text("[" * 10**5), "recursion depth"),
    "no text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x81"), "is not a valid JSON file"),
    "no number": (lambda f: change(f / "config.json", hidden_size="many"), "'hidden_size' expected int, got str"),
    "no heads": (lambda f: change(f / "config.json", num_attention_heads=0), "ZeroDivisionError: "),
    "no such kind": (lambda f: change(f / "config.json", model_type="future"), "has model type `future`"),
    "a kind that is none": (lambda f: change(f / "config.json", model_type=["bert"]), "TypeError: unhashable type"),
    "a dropout that is none": (
        lambda f: change(f / "config.json", hidden_dropout_prob=float("nan")),
        "fails on two short texts: dropout probability has to be between 0 and 1",
    ),
    "no positions": (lambda f: change(f / "config.json", max_position_embeddings=0), "fails on two short texts: "),
    "fewer heads than none": (lambda f: change(f / "config.json", num_attention_heads=-1), "two short texts: "),
    "code with a number for a name": (
        lambda f: change(f / "config.json", model_type="its-own", auto_map={"AutoConfig": "own.A", "AutoModel": 7}),
        r"needs custom code \(own.py\)",
    ),
    "code in lists of lists": (
        lambda f: change(f / "config.json", model_type="its-own", auto_map={"AutoConfig": [["a"], None]}),
        "",
    ),
    "no such activation": (lambda f: change(f / "config.json", hidden_act="none of them"), "KeyError: 'none of them'"),
    "classes in a list": (lambda f: change(f / "config.json", id2label=["a", "b"]), ""),
    "bits and bytes": (lambda f: change(f / "config.json", quantization_config=BITS), "could not be loaded: "),
    "other bits": (
        lambda f: change(f / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "its weights are quantised by gptq, and only those of bitsandbytes are read",
    ),
    "no quantisation": (lambda f: change(f / "config.json", quantization_config=[1]), "AttributeError: 'list'"),
    "a word for a quantisation": (lambda f: change(f / "config.json", quantization_config="4bit"), ""),
    "more memory than there is": (lambda f: change(f / "config.json", vocab_size=10**15), "memory"),
    "other weights": (lambda f: change(f / "config.json", hidden_size=64), "none of its weights have the names and"),
    "half a tokenizer": (lambda f: cut(f, "tokenizer.json"), "its tokenizer could not be loaded: Expecting "),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ""),
    "rules of the future": (
        lambda f: change(f / "tokenizer.json", pre_tokenizer={"type": "FromTheFuture"}),
        "its tokenizer could not be loaded: data did not match any variant",
    ),
    "a map that is none": (
        lambda f: normalised_by(f, type="Precompiled", precompiled_charsmap="eHh4"),
        "its tokenizer could not be loaded: PanicException: ",
    ),
    "a tokenizer that reads no text": (
        lambda f: change(f / "tokenizer.json", model={"type": "WordPiece", "vocab": {}, "unk_token": "?"}),
        "its tokenizer could not be loaded: ",
    ),
    "a length in words": (
        lambda f: change(f / "tokenizer_config.json", model_max_length="long"),
        "its tokenizer could not be loaded: ",
    ),
    "half of the weights": (lambda f: cut(f, "model.safetensors"), "SafetensorError: "),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no file named model.safetensors"),
    "no second shard": (sharded, "No such file or directory: .*model-00002-of-00002.safetensors"),
    "pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        r"its weights are in \.bin files only, which can run code",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_line_that_names_it(folder, damage):
    spoil, line = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(InputError, match=rf"model.name='{folder}'.*{line}") as found:
        classifier(folder)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 500


def test_a_language_model_that_takes_no_text_is_one_line(whole, tmp_path):
    shutil.copytree(whole / "llama", tmp_path / "model")
    change(tmp_path / "model" / "config.json", num_key_value_heads=3)
    with pytest.raises(InputError, match=r"^model.name=.*: fails on a short text: [^\n]*$"):
        text.build_language_model(Pretrained(str(tmp_path / "model")), 32, FRESH)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only LORA is supported"),
        ({}, "peft_type is None"),
        ({"peft_type": "LORA", "megatron_config": {"a": 1}}, "megatron_config is not supported"),
        ({"peft_type": "LORA", "megatron_core": "antigravity"}, "megatron_core is not supported"),
        ([1], "cannot be read: "),
    ],
)
def test_an_adapter_of_another_kind_is_refused_before_it_is_read(tmp_path, config, line):
    (tmp_path / "adapter_model.safetensors").touch()
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"adapter_config.json: {line}[^\n]*$"):
        load_adapter(torch.nn.Linear(1, 1), tmp_path)


def test_modules_without_weights_in_the_folder_are_said(folder):
    change(folder / "config.json", num_hidden_layers=3)
    with pytest.warns(
        UserWarning, match=r"no weights of the right shape for bert.encoder.layer.2.attention.* and 5 more"
    ):
        text.build_classifier(Pretrained(str(folder)), ["a", "b"], 32)


def test_the_hand_that_stops_a_load_is_obeyed():
    with pytest.raises(KeyboardInterrupt), as_input_error("a model could not be loaded"):
        raise KeyboardInterrupt


SETTINGS = load("digits").model_dump(mode="json")
ABOUT = {"classes": ["a", "b"], "shape": [3, 16, 16], "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.mark.parametrize(
    "facts", ["{", "[]", '{"settings": 3}', '{"settings": {}, "data": {}}', '{"settings": {"model": 1}, "data": {}}']
)
def test_damaged_facts_of_an_exported_model_are_one_line(folder, facts):
    (folder / "fedadamw.json").write_text(facts)
    with pytest.raises(InputError) as found:
        open_trained(folder, [])
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"relative": [1]}, "AttributeError: 'int' object has no attribute 'split'"),
        ({"data": {**ABOUT, "mean": "abc"}}, "mean has 'a', which is not a number"),
        ({"data": {**ABOUT, "std": 7}}, "TypeError: 'int' object is not iterable"),
    ],
)
def test_facts_of_other_types_are_one_line(folder, facts, line):
    (folder / "fedadamw.json").write_text(json.dumps({"settings": SETTINGS, "data": ABOUT, **facts}))
    with pytest.raises(InputError, match=line) as found:
        open_trained(folder, [])
    assert "\n" not in str(found.value)
