"""Adapters: what is trained and sent, engines that agree on them, and what their mean means."""

import copy
import itertools

import numpy as np
import pytest
import torch
from support import tiny_models
from support.adapters import resume_after_one_round, simulation

from fedadamw.algorithms.registry import BUILT_IN
from fedadamw.data.text_tasks import TextTask
from fedadamw.engine.client import plan_work
from fedadamw.models import vision
from fedadamw.models.lora.adapters import add_adapters
from fedadamw.models.lora.means import Folding
from fedadamw.settings.load import load
from fedadamw.settings.lora import LoraSettings
from fedadamw.validation import InputError


@pytest.mark.parametrize("upload", ["float32", "top-k"])
@pytest.mark.parametrize("aggregate", ["factors", "frozen-a", "exact"])
def test_stacked_clients_with_adapters_and_padding_come_to_the_loops_numbers(place, double, aggregate, upload):
    given = (f"lora.aggregate={aggregate}", f"training.upload={upload}")
    loop, stacked = (simulation(place, *given, stack=stack) for stack in (1, 3))
    assert loop.task.form.mask == "4d"
    for ours, theirs in zip(stacked.rounds(), loop.rounds(), strict=True):
        for name, t in loop.state.tensors().items():
            torch.testing.assert_close(stacked.state.tensors()[name], t, rtol=1e-10, atol=1e-10)
        assert ours.train_loss == pytest.approx(theirs.train_loss, abs=1e-10)
        assert (ours.up_bytes, ours.down_bytes) == (theirs.up_bytes, theirs.down_bytes)


@pytest.mark.parametrize("batch_size", [12, 100])  # 100: more than some clients have
def test_grouping_by_length_pads_less_and_changes_no_sample(place, batch_size):
    size = f"training.batch_size={batch_size}"
    plain, grouped = (simulation(place, size, f"training.group_by_length={on}") for on in ("false", "true"))
    task, padded = grouped.task, []
    for client, samples in enumerate(grouped.clients.partition):
        works = [plan_work(task, sim.training, 0, client, samples, 0) for sim in (plain, grouped)]
        assert sorted(works[0].samples.tolist()) == sorted(works[1].samples.tolist())
        assert works[0].sizes == works[1].sizes
        padded.append([sum(task.batch(*part)[0].numel() for part in work.batches()) for work in works])
        again = plan_work(task, grouped.training, 0, client, samples, 0)
        assert torch.equal(works[1].samples, again.samples)
    without, with_ = map(sum, zip(*padded, strict=True))
    assert with_ < without
    batches = [task.lengths[samples] for samples, _ in works[1].batches()]
    ends = sorted((int(b.min()), int(b.max())) for b in batches)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ends)), "batches do not overlap in length"


def test_grouping_by_length_is_for_texts():
    with pytest.raises(InputError, match="training.group_by_length is not a setting of data.task='image'"):
        load("digits", ["training.group_by_length=true"])


@pytest.mark.parametrize(("kind", "task"), [("bert", "text"), ("llama", "text"), ("llama", "causal-lm")])
@pytest.mark.parametrize("lora", [True, False])
def test_other_models_of_text_stack_too(place, double, kind, task, lora):
    loop, stacked = (simulation(place, kind=kind, task=task, lora=lora, stack=stack) for stack in (1, 3))
    for _ in zip(loop.rounds(), stacked.rounds(), strict=True):
        torch.testing.assert_close(stacked.state.server.x, loop.state.server.x, rtol=1e-9, atol=1e-9)


def test_a_model_that_does_not_stack_says_so(place):
    sim = simulation(place, f"model={place / 'gpt2'}", lora=False, stack=3)
    with pytest.raises(InputError, match="does not train stacked: set stack=1"):
        sim.step()


@pytest.mark.parametrize("stack", [1, 3])
def test_with_dropout_two_runs_of_one_engine_are_identical(place, stack):
    runs = [simulation(place, "lora.dropout=0.3", stack=stack) for _ in range(2)]
    for sim in runs:
        list(sim.rounds())
    assert torch.equal(runs[0].state.server.x, runs[1].state.server.x)
    without = simulation(place, stack=stack)
    list(without.rounds())
    assert not torch.equal(runs[0].state.server.x, without.state.server.x)


def test_only_adapters_and_head_are_trained_and_sent(place):
    sim = simulation(place)
    names = sim.workspace.layout.names
    assert all("lora_" in name or "classifier" in name for name in names)
    assert not any("lora_" in name and "classifier" in name for name in names)
    assert sum("lora_A" in name for name in names) == 2 * 6  # two layers of query, key, value and three dense
    base = {n: p.clone() for n, p in sim.workspace.module.named_parameters() if not p.requires_grad}
    record = sim.step()
    for name, p in sim.workspace.module.named_parameters():
        assert p.requires_grad or torch.equal(p, base[name])
    assert record.up_bytes == 3 * 4 * (sim.workspace.layout.d + sim.algorithm.blocks.B + 1)


def test_frozen_a_sends_half_of_square_layers(place):
    def adapters(aggregate):
        sim = simulation(place, "lora.target_modules=[query,key,value]", f"lora.aggregate={aggregate}")
        sizes = zip(sim.workspace.layout.names, sim.workspace.layout.sizes, strict=True)
        return sum(size for name, size in sizes if "lora_" in name), sim.step().up_bytes

    (both, _), (half, sent) = adapters("factors"), adapters("frozen-a")
    assert 2 * half == both
    sim = simulation(place, "lora.target_modules=[query,key,value]", "lora.aggregate=frozen-a")
    assert sent == 3 * 4 * (sim.workspace.layout.d + sim.algorithm.blocks.B + 1)


@pytest.mark.parametrize(("kind", "targets"), [("roberta", ("query", "dense")), ("gpt2", ("c_attn", "c_proj"))])
def test_the_exact_mean_is_that_of_the_dense_weights(place, kind, targets):
    """Client by client: merge the adapters into the weights, take the mean of these; the global model is that."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForCausalLM if kind == "gpt2" else AutoModelForSequenceClassification
    plain = auto.from_pretrained(place / kind).double().eval()
    model = add_adapters(
        plain, LoraSettings(r=3, alpha=5, dropout=0.0, target_modules=targets, aggregate="exact"), None
    ).eval()
    folding = Folding(model)
    from fedadamw.engine.workspace import Workspace

    work = Workspace(model)
    g = torch.Generator().manual_seed(0)
    clients = [work.y + 0.1 * torch.randn(work.y.shape, generator=g, dtype=torch.float64) for _ in range(4)]
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    dense = [weight_of_merged(model, work, y) for y in clients]
    expected = {n: sum(w * d[n] for w, d in zip(weights, dense, strict=True)) for n in dense[0]}
    stacked = torch.stack(clients)
    torch.testing.assert_close(folding.product(stacked)[1], folding.product(clients[1]), rtol=0, atol=1e-12)
    base, x = folding.fold(folding.base, weights @ folding.product(stacked), weights @ stacked)
    folding.load(base)
    work.y.copy_(x)
    found = weight_of_merged(model, work, work.y.clone())
    assert len(found) == len(expected) > 0
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10)


def weight_of_merged(model, work, y) -> dict[str, torch.Tensor]:
    """The weights of the adapted layers, by peft's own sum of base and adapter."""
    work.y.copy_(y)
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "get_delta_weight")}
    return {n: (m.get_base_layer().weight + m.get_delta_weight("default")).detach() for n, m in layers.items()}


@pytest.mark.parametrize("upload", ["float32", "int8"])
def test_the_exact_mean_survives_a_stop(place, upload):
    given = ("lora.aggregate=exact", f"training.upload={upload}")
    whole, second = resume_after_one_round(place, *given)
    assert whole.evaluate() == second.evaluate()


def test_exact_is_refused_where_the_server_does_more_than_take_the_mean(place, monkeypatch):
    settings = ["lora.aggregate=exact", "algorithm=fedadam"]
    refused = pytest.raises(InputError, match="takes the clients' mean as it is; this algorithm's server does not")
    with refused:
        simulation(place, *settings)
    monkeypatch.setattr(BUILT_IN["fedadam"], "adds_mean", True)  # an algorithm of one's own that does not say so
    sim = simulation(place, *settings)
    with refused:
        sim.step()


@pytest.mark.parametrize("name", [name for name, of in BUILT_IN.items() if of.adds_mean and not of.own_model])
def test_one_clients_mean_is_that_client_for_every_algorithm(place, double, name):
    losses = []
    for aggregate in ("factors", "exact"):
        one = ["training.clients_per_round=1", "training.rounds=1", f"algorithm={name}"]
        sim = simulation(place, f"lora.aggregate={aggregate}", *one)
        sim.step()
        losses.append(sim.evaluate().loss)
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


def test_a_layer_whose_weight_another_has_too_is_refused(place, tmp_path):
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = {**tiny_models.SIZES, "vocab_size": 302, "num_key_value_heads": 2, "head_dim": 8}
    tied = AutoModelForCausalLM.from_config(LlamaConfig(**shape, tie_word_embeddings=True))
    add_adapters(copy.deepcopy(tied), LoraSettings(target_modules=("q_proj",)), "CAUSAL_LM")
    with pytest.raises(InputError, match=r"lm_head.*is tied to .*embed_tokens.*; leave it out"):
        add_adapters(tied, LoraSettings(target_modules=("lm_head", "q_proj")), "CAUSAL_LM")


def test_full_fine_tuning_is_the_same_without_the_section(place):
    sim = simulation(place, "lora=null")
    assert sim.workspace.layout.d == sum(p.numel() for p in sim.workspace.module.parameters())
    assert np.isfinite(sim.step().train_loss)


@pytest.mark.parametrize(
    ("targets", "line"),
    [
        ("[qeury]", "'qeury' matches no layer; the model has dense, key, position_embeddings, query"),
        ("[query,out_proj]", "'out_proj' matches no layer"),  # the head's own, which is trained whole
        ("[attention]", "'attention' matches no layer; the model has dense, key, position_embeddings, query"),
        (
            "[.*query]",
            "matches no layer; .*; give a pattern alone, without brackets: lora.target_modules=.*query",
        ),
        (
            ".*qeury",
            "=.*qeury: matches no layer .it must match a whole name, such as roberta.*; the model has dense, key",
        ),
        (".*out_proj", "=.*out_proj: matches no layer"),
        ("'(query'", "not a valid pattern .missing"),
        (".*attention.*", "also matches roberta.encoder.layer.0.attention, which is not a layer"),
        ("query,key", r"give a list, \[query,key\]"),
        ("[all-linear,query]", "all-linear stands alone, without other names"),
        ("[]", "give names in a list, a pattern, or all-linear"),
        ("7", "lora.target_modules=7: give names in a list, a pattern, or all-linear"),
    ],
)
def test_targets_that_match_nothing_are_named_with_those_there_are(place, targets, line):
    with pytest.raises(InputError, match=line) as found:
        simulation(place, f"lora.target_modules={targets}")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("given", ["all-linear", "[all-linear]", "All-Linear"])
@pytest.mark.parametrize(("kind", "task"), [("roberta", "text"), ("llama", "causal-lm")])
def test_all_linear_is_every_linear_layer_but_the_output(place, kind, task, given):
    sim = simulation(place, f"lora.target_modules={given}", kind=kind, task=task)
    plain = simulation(place, kind=kind, task=task, lora=False).workspace.module
    linear = {name for name, module in plain.named_modules() if isinstance(module, torch.nn.Linear)}
    names = [name.removeprefix("base_model.model.") for name in sim.workspace.layout.names]
    found = {name.removesuffix(".lora_A.default.weight") for name in names if "lora_A" in name}
    heads = {"roberta": {"classifier.dense", "classifier.out_proj"}, "llama": {"lm_head"}}[kind]
    assert found == linear - heads
    whole = {name.replace("modules_to_save.default.", "").rpartition(".")[0] for name in names if "lora_" not in name}
    assert whole == (heads if task == "text" else set())
    kinds = {row.kind for row in sim.algorithm.blocks.table()}
    assert {"query", "key", "value", "projection", "mlp", "lora-a"} <= kinds
    assert "unknown" not in kinds
    assert np.isfinite(sim.step().train_loss)


def test_a_pattern_is_matched_against_whole_names_as_peft_does(place):
    sim = simulation(place, r"lora.target_modules=.*\.layer\.1\..*(query|key)")
    adapted_ones = {name.split(".lora_")[0] for name in sim.workspace.layout.names if "lora_" in name}
    ends = ("layer.1.attention.self.query", "layer.1.attention.self.key")
    assert {next(end for end in ends if name.endswith(end)) for name in adapted_ones} == set(ends)
    assert len(adapted_ones) == 2


def test_all_linear_of_a_model_without_a_linear_layer_is_refused():
    model = vision.build("resnet-nano", vision.ImageShape(8, 1, 10)).model
    with pytest.raises(InputError, match="=all-linear: no layer below the head is linear; the model has convolution"):
        add_adapters(model, LoraSettings(target_modules="all-linear"), None)
    with pytest.raises(InputError, match="peft has no default for this model; name its layers"):
        add_adapters(model, LoraSettings(), None)


def test_padding_changes_nothing(place):
    sim = simulation(place)
    task: TextTask = sim.task
    samples = torch.arange(12)
    sim.workspace.module.eval()
    together = task.losses(sim.workspace.module, task.batch(samples, torch.empty(12, 0)))
    alone = [task.losses(sim.workspace.module, task.batch(samples[i : i + 1], torch.empty(1, 0))) for i in range(12)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)
    assert task.batch(samples, torch.empty(12, 0))[0].shape[1] % 8 == 0
