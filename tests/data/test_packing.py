"""Several texts in one row give each text the loss it has alone."""

import pytest
import torch
from support import tiny_models
from support.text_experiments import experiment

from fedadamw.data.packing import arrange, pack
from fedadamw.models.dtypes import Weights
from fedadamw.models.text import try_packing
from fedadamw.prepare.simulation import prepare
from fedadamw.validation import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tiny_models.folders(tmp_path_factory.mktemp("packing"), ("llama", "qwen3", "gemma2", "gpt2"))


def test_texts_fill_rows_longest_first():
    assert arrange([3, 8, 4, 1, 5], 8) == [[1], [4, 0], [2, 3]]
    packed = pack(torch.tensor([3, 8, 4, 1, 5]), 8, CPU)
    assert packed.texts.tolist() == [[1] * 8, [4] * 5 + [0] * 3, [2] * 4 + [3] + [-1] * 3]
    assert packed.positions.tolist()[2] == [0, 1, 2, 3, 0, 0, 0, 0]
    tokens = torch.arange(1, 41).view(5, 8)
    rows = packed.take(tokens, -1)
    assert rows.tolist()[2] == [17, 18, 19, 20, 25, -1, -1, -1]
    real = torch.arange(8) < torch.tensor([3, 8, 4, 1, 5])[:, None]
    assert packed.put_back(rows, 5).tolist() == (tokens * real).tolist()


def test_a_token_sees_its_own_text_so_far():
    mask = pack(torch.tensor([2, 1]), 4, CPU).mask[0, 0]
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def both(place, *settings, kind="llama"):
    common = ("data.text_column=text", "training.batch_size=20", *settings)
    return [
        prepare(experiment(place, f"data.packing={packing}", *common, kind=kind, task="causal-lm"))
        for packing in ("false", "true")
    ]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2"])
def test_packed_texts_have_the_losses_and_gradients_of_texts_alone(place, kind):
    alone, packed = both(place, kind=kind)
    samples = torch.arange(20)
    found, rows = [], []
    for prepared in (alone, packed):
        module = prepared.workspace.module.train()
        module.register_forward_pre_hook(
            lambda _, __, inputs: rows.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
        )
        prepared.workspace.gradient.zero_()
        losses = prepared.task.losses(module, prepared.task.batch(samples, torch.empty(20, 0)))
        (losses * torch.linspace(1, 2, 20)).sum().backward()
        found.append((losses.detach(), prepared.workspace.gradient.clone()))
    assert rows[1][1] == rows[0][1]
    assert rows[1][0] < 0.7 * rows[0][0], "fewer rows"
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("error:this model does not train stacked")
@pytest.mark.parametrize(
    "settings", [(), ("training.micro_batch=7",), ("stack=3",), ("stack=3", "training.micro_batch=7")]
)
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_runs_with_packing_come_to_the_same_losses(place, kind, settings):
    common = ("partition.clients=4", "training={rounds: 2, clients_per_round: 3, steps: 2, batch_size: 12, lr: 1e-3}")
    alone, packed = (
        [(r.train_loss, r.test_loss) for r in prepared.simulation().rounds()]
        for prepared in both(place, *common, *settings, kind=kind)
    )
    for ours, theirs in zip(packed, alone, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
def test_windows_shorter_than_a_text_do_not_stack(place):
    settings = ("partition.clients=4", "training={rounds: 1, clients_per_round: 3, steps: 1, batch_size: 12}")
    _, packed = both(place, *settings, "stack=3", kind="gemma2")
    with pytest.raises(InputError, match="this model does not train stacked: set stack=1"):
        packed.simulation().step()


def test_what_cannot_be_packed_is_refused_in_a_line(place):
    for settings, task, line in (
        (["training.micro_batch=1"], "causal-lm", "data.packing=true: a micro-batch of one text has nothing to pack"),
        ([], "text", "data.packing is not a setting of data.task='text'"),
    ):
        with pytest.raises(InputError, match=line):
            prepare(experiment(place, "data.packing=true", *settings, kind="llama", task=task))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_mixes_the_texts_of_a_row_is_refused(dtype):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(tiny_models.config("llama")).to(dtype)
    assert try_packing("tiny", model, 64, Weights(dtype=dtype))
    original = model.forward
    model.forward = lambda position_ids=None, **inputs: original(**inputs)
    with pytest.raises(InputError, match="data.packing: 'tiny' does not keep two texts in one row apart"):
        try_packing("tiny", model, 64, Weights(dtype=dtype))
