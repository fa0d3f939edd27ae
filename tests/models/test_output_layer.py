"""Losses in chunks of tokens: the same as from whole logits, with a fraction of the memory."""

import pytest
import torch
from support import tiny_models
from support.text_experiments import experiment
from torch.func import functional_call, vmap
from transformers import AutoModelForCausalLM

from benchmarks.common.tensor_peak import Peak
from fedadamw.data.text_tasks import LanguageTask
from fedadamw.data.texts import Texts
from fedadamw.engine.vmap_rules import batched_kernels
from fedadamw.models import output_layer
from fedadamw.models.lora.adapters import add_adapters
from fedadamw.models.output_layer import OutputLayer, chunk_tokens, find_output_layer, is_chunked
from fedadamw.models.text import Form
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.lora import LoraSettings

CPU = torch.device("cpu")
ALL = ("llama", "qwen3", "gemma2", "gpt2", "granite", "cohere")
WORDS = len(tiny_models.tokenizer())


def language_model(kind, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = tiny_models.config(kind)
        config.update(changes)
        return AutoModelForCausalLM.from_config(config).double()


def find(model):
    ids = torch.arange(8)[None]
    with torch.no_grad():
        return find_output_layer(model.eval(), ids, model(input_ids=ids).logits)


def task_of(output, count=6, length=24):
    """Texts of unequal lengths, of which some tokens are learned."""
    g = torch.Generator().manual_seed(1)
    lengths = torch.randint(4, length + 1, (count,), generator=g)
    lengths[0] = length
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    tokens = torch.randint(WORDS, (int(starts[-1]),), generator=g).int()
    marks = (torch.rand(len(tokens), generator=g) < 0.5).to(torch.int8)
    marks[starts[1:] - 1] = 1
    arrays = (t.numpy() for t in (tokens, marks, starts, torch.zeros(count, dtype=torch.long)))
    texts = Texts(*arrays, ("text",))
    return LanguageTask(texts, texts, Form(1, 64, output=output), device=CPU, test_batch_size=count)


def losses_and_gradients(model, output, chunk, monkeypatch):
    """The losses of some texts, their gradients and what an evaluation gives, with `chunk` tokens at a time."""
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", chunk * 4 * WORDS)
    task = task_of(output)
    model.zero_grad()
    losses = task.losses(model.train(), task.batch(torch.arange(6), torch.empty(6, 0)))
    (losses * torch.arange(1, 7)).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    with torch.no_grad():
        found = task.outputs(model.eval(), 0, 6)
    return losses.detach(), gradients, found


def assert_chunks_equal_the_whole(model, output, monkeypatch):
    assert isinstance(output, OutputLayer), output
    whole = losses_and_gradients(model, output, 10_000, monkeypatch)
    calls = []
    monkeypatch.setattr(OutputLayer, "logits", counted(OutputLayer.logits, calls))
    chunked = losses_and_gradients(model, output, 5, monkeypatch)
    assert max(calls) == 5
    assert len(calls) > 10
    for ours, theirs in zip(chunked[0], whole[0], strict=True):
        assert float(ours) == pytest.approx(float(theirs), abs=1e-12)
    assert len(chunked[1]) == len(whole[1]) > 0
    for ours, theirs in zip(chunked[1], whole[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(chunked[2], whole[2], rtol=1e-12, atol=1e-12)


def counted(logits, calls):
    def count(self, hidden, *own):
        calls.append(len(hidden))
        return logits(self, hidden, *own)

    return count


@pytest.mark.parametrize("kind", ALL)
def test_chunks_equal_whole_logits_whatever_follows_the_decoder(kind, monkeypatch):
    model = language_model(kind)
    assert_chunks_equal_the_whole(model, find(model), monkeypatch)


@pytest.mark.parametrize("targets", ["q_proj", "lm_head"])
def test_chunks_equal_whole_logits_with_adapters(targets, monkeypatch):
    model = language_model("llama")
    output = find(model)
    model = add_adapters(model, LoraSettings(target_modules=(targets, "v_proj"), dropout=0.0), "CAUSAL_LM").double()
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p.data, std=0.1)
    assert output.trains == (targets == "lm_head")
    assert_chunks_equal_the_whole(model, output, monkeypatch)


def test_a_tied_head_trains_with_its_embeddings():
    tied, untied = (language_model("llama", tie_word_embeddings=tie) for tie in (True, False))
    for model in (tied, untied):
        model.get_output_embeddings().weight.requires_grad_(False)
    outputs = [find(model) for model in (tied, untied)]
    assert [output.trains for output in outputs] == [False, False]
    tied.get_input_embeddings().weight.requires_grad_()
    untied.get_input_embeddings().weight.requires_grad_()
    assert [output.trains for output in outputs] == [True, False]


@pytest.mark.parametrize(
    ("kind", "trained"),
    [
        ("llama", "model.norm.weight"),
        ("llama", "lm_head.weight"),
        pytest.param("gemma2", "model.embed_tokens.weight", marks=pytest.mark.slow),
    ],
)
def test_chunks_are_the_same_for_stacked_clients(kind, trained, monkeypatch):
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 9 * 4 * WORDS)
    model = language_model(kind)
    output = find(model)
    model.requires_grad_(False).get_parameter(trained).requires_grad_()
    assert output.trains == (trained != "model.norm.weight")
    task, weight = task_of(output), model.get_parameter(trained).detach()
    batch = tuple(t.unflatten(0, (3, 2)) for t in task.batch(torch.arange(6), torch.empty(6, 0)))
    scales = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).requires_grad_()

    def client(scale, *batch):
        weights = {trained: weight * scale}
        return task.losses(lambda **inputs: functional_call(model, weights, (), inputs), batch)

    def stack():
        with batched_kernels():
            losses = vmap(client)(scales, *batch)
        return losses, *torch.autograd.grad(losses.square().sum(), scales)

    calls = []
    monkeypatch.setattr(OutputLayer, "logits", counted(OutputLayer.logits, calls))
    chunked = stack()
    assert max(calls) == (3 if output.trains else 9)
    assert len(calls) > 3
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 2**30)
    for ours, theirs in zip(chunked, stack(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.filterwarnings("error:this model does not train stacked")
@pytest.mark.parametrize("adapted", ["[q_proj,v_proj]", "[q_proj,lm_head]", None])
def test_runs_in_chunks_come_to_the_numbers_of_whole_logits(adapted, monkeypatch, tmp_path):
    place = tiny_models.folders(tmp_path, ["llama"])
    lora = [f"lora={{r: 2, dropout: 0, target_modules: {adapted}}}"] if adapted else []
    common = [
        "data.text_column=text",
        "partition.clients=4",
        "training={rounds: 2, clients_per_round: 3, steps: 2}",
        *lora,
    ]

    def run(chunk, *settings):
        monkeypatch.setattr(output_layer, "CHUNK_BYTES", chunk * 4 * WORDS)
        sim = prepare(experiment(place, *common, *settings, kind="llama", task="causal-lm")).simulation()
        return [(record.train_loss, record.test_loss) for record in sim.rounds()]

    whole = run(10**6)
    calls = []
    monkeypatch.setattr(OutputLayer, "logits", counted(OutputLayer.logits, calls))
    for settings in ((), ("stack=3",), ("stack=2", "training.micro_batch=4", "data.packing=true")):
        for ours, theirs in zip(run(30, *settings), whole, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
    assert max(calls) == 30


@pytest.mark.parametrize("head", ["frozen", "trained"])
def test_whole_logits_never_exist(head, monkeypatch):
    model = language_model("llama", vocab_size=4000).float()
    output = find(model)
    model.requires_grad_(False)
    model.model.layers.requires_grad_()
    model.lm_head.requires_grad_(head == "trained")
    task = task_of(output, count=16, length=64)

    def peak(tokens):
        monkeypatch.setattr(output_layer, "CHUNK_BYTES", tokens * 4 * 4000)
        with Peak() as found:
            task.losses(model.train(), task.batch(torch.arange(16), torch.empty(16, 0))).sum().backward()
        model.zero_grad()
        return found

    whole, chunked = peak(10**6), peak(32)
    logits = 16 * 64 * 4000 * 4
    assert whole.largest == logits
    assert whole.bytes > 2 * logits
    assert chunked.largest == 32 * 4000 * 4
    saved = whole.bytes - chunked.bytes
    assert saved > 0.95 * (2 * logits - output_layer.LOGIT_COPIES * chunked.largest)


def test_small_logits_are_computed_whole_as_before():
    assert chunk_tokens(128_256) == 130
    assert is_chunked(131, 128_256)
    assert not is_chunked(130, 128_256)
    assert chunk_tokens(10**9) == 1


def test_a_model_whose_logits_need_more_than_hidden_states_says_so_once(monkeypatch):
    monkeypatch.setattr(output_layer, "CHUNK_BYTES", 4 * WORDS)
    model = language_model("llama")
    original = model.forward
    model.forward = lambda input_ids, use_cache=None: original(input_ids=input_ids, use_cache=use_cache)
    task = task_of(find(model))
    batch = task.batch(torch.arange(6), torch.empty(6, 0))
    with pytest.warns(UserWarning, match="logits of 144 x .* at once, not in chunks: its forward") as said:
        losses = [task.losses(model, batch) for _ in range(2)]
    assert len(said) == 1
    model.forward = original
    torch.testing.assert_close(losses[1], task_of(find(model)).losses(model, batch), rtol=1e-12, atol=1e-12)
