"""Models in .gguf files: where they are looked for, what is read, and what a damaged one gives."""

import struct

import pytest
import torch
from support import tiny_models
from support.gguf_files import write_gguf
from support.text_experiments import experiment
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedadamw.models import gguf
from fedadamw.models.dtypes import Weights
from fedadamw.models.gguf import is_local_gguf, split_gguf
from fedadamw.models.loading import is_hub_id, is_local, locate
from fedadamw.models.pretrained import Pretrained
from fedadamw.models.skeleton import build_skeleton
from fedadamw.prepare.simulation import prepare
from fedadamw.validation import InputError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf")
    tiny_models.folder(path / "llama", "llama", template=tiny_models.TEMPLATE)
    write_gguf(path / "llama", path / "tiny.gguf")
    write_gguf(path / "llama", path / "packed.gguf", packed=True)
    return path


def test_a_file_gives_the_folders_model_and_tokenizer(place):
    model, fresh = Pretrained(str(place / "tiny.gguf")).build(AutoModelForCausalLM, Weights())
    expected = AutoModelForCausalLM.from_pretrained(place / "llama").state_dict()
    assert fresh == []
    assert {name: torch.equal(t, expected[name]) for name, t in model.state_dict().items()} == dict.fromkeys(
        expected, True
    )
    words, others = Pretrained(str(place / "tiny.gguf")).tokenizer, AutoTokenizer.from_pretrained(place / "llama")
    assert words("a very good film").input_ids == others("a very good film").input_ids
    assert (words.eos_token, words.pad_token, words.chat_template) == ("</s>", "<pad>", tiny_models.TEMPLATE)


def test_packed_weights_are_unpacked_and_the_model_can_be_saved(place, tmp_path):
    model, _ = Pretrained(str(place / "packed.gguf")).build(AutoModelForCausalLM, Weights())
    weight = AutoModelForCausalLM.from_pretrained(place / "llama").get_input_embeddings().weight
    got = model.get_input_embeddings().weight
    assert got.dtype == torch.float32
    assert 0 < (got - weight).abs().max() < weight.abs().max() / 127
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.get_input_embeddings().weight, got)


def test_configuration_and_blocks_need_no_weights(place, monkeypatch):
    def load(*_args, **_settings):
        raise AssertionError("weights are read")

    monkeypatch.setattr("transformers.modeling_gguf_pytorch_utils.dequantize", load, raising=False)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    skeleton = build_skeleton(str(place / "tiny.gguf"))
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    fresh, _ = Pretrained(str(place / "tiny.gguf")).build(AutoModelForCausalLM, Weights(fresh=True))
    assert sum(p.numel() for p in fresh.parameters()) == sum(p.numel() for p in skeleton.parameters())


def test_preparing_a_run_reads_the_weights_once(place, monkeypatch):
    loads, original = [], AutoModelForCausalLM.from_pretrained

    def load(*args, **settings):
        loads.append(args)
        return original(*args, **settings)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    tiny_models.reviews(place / "reviews.csv")
    prepare(experiment(place, "lora.target_modules=[q_proj]", kind="tiny.gguf", task="causal-lm"))
    assert len(loads) == 1


def test_a_name_is_a_file_here_or_in_a_package_or_on_the_hub(place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    assert locate("model.name", "tiny.gguf") == str(place / "tiny.gguf")
    package = tmp_path / "site" / "small_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "tiny.gguf").symlink_to(place / "packed.gguf")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert locate("model.name", "package:small_model/tiny.gguf") == str(place / "packed.gguf")
    assert is_local("package:small_model/tiny.gguf")
    assert is_hub_id("owner/name/FILE.Q4_1.gguf")
    assert locate("model.name", "owner/name/FILE.gguf") == "owner/name/FILE.gguf"
    assert split_gguf("owner/name/sub/FILE.gguf") == ("owner/name", {"gguf_file": "sub/FILE.gguf"})
    assert not is_hub_id("folder/FILE.gguf")
    (tmp_path / "owner/name/x.gguf").mkdir(parents=True)
    assert not is_local_gguf(str(tmp_path / "owner/name/x.gguf"))  # a folder of that name


def assert_refused(name, says):
    with pytest.raises(InputError, match=says) as refused:
        Pretrained(str(name)).build(AutoModelForCausalLM, Weights())
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_used_is_one_line(place, tmp_path):
    assert_refused("./missing.gguf", r"^model.name='./missing.gguf': no such file$")
    (tmp_path / "words.gguf").write_text("hello")
    assert_refused(tmp_path / "words.gguf", "words.gguf': is no GGUF file")
    whole = (place / "tiny.gguf").read_bytes()
    for length in (4, 20, 200, 5000, len(whole) - 1000):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        assert_refused(tmp_path / "cut.gguf", "cut.gguf' could not be loaded: ")
    (tmp_path / "huge.gguf").write_bytes(whole[:8] + struct.pack("<QQ", 2**60, 2**60) + whole[24:])
    assert_refused(tmp_path / "huge.gguf", "huge.gguf' could not be loaded: ")
    write_gguf(place / "llama", tmp_path / "other.gguf", architecture="rwkv7")
    assert_refused(tmp_path / "other.gguf", "GGUF model with architecture rwkv7 is not supported")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one.gguf").write_bytes(whole)
    assert_refused(tmp_path / "folder", r"not a model's folder \(no config.json\); name one of its files: one.gguf$")


def test_a_missing_library_is_named(place, monkeypatch):
    monkeypatch.setattr(gguf, "find_spec", lambda name: None if name == "gguf" else name)
    assert_refused(place / "tiny.gguf", r"needs gguf: pip install 'gguf>=0.17' 'accelerate>=1.10'$")
