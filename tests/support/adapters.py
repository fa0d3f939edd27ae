"""Runs of small models with adapters, and their weights by peft's own sums."""

import torch

from fedadamw.engine.simulate import Saved
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load
from support import tiny_models

TARGETS = {"roberta": "[query,key,value,dense]", "bert": "[query,value]", "llama": "[q_proj,v_proj,down_proj]"}


def make_place(path):
    """Put small models and reviews into the folder `path`."""
    for kind in (*TARGETS, "gpt2"):
        tiny_models.folder(path / kind, kind)
    tiny_models.reviews(path / "reviews.csv")
    return path


def simulation(place, *settings, kind="roberta", lora=True, stack=1, task="text"):
    """Five unequal clients, three a round, three rounds."""
    adapters = [f"lora.target_modules={TARGETS[kind]}", "lora.r=4", "lora.dropout=0"] if lora else []
    common = [
        f"data.task={task}",
        f"data.source={place / 'reviews.csv'}",
        "data.validation=0.2",
        f"model={place / kind}",
        "partition={kind: dirichlet, clients: 5, concentration: 0.5}",
        "training={rounds: 3, clients_per_round: 3, steps: 3, batch_size: 12, lr: 0.01, clip: 1.0}",
        f"stack={stack}",
        "device=cpu",
    ]
    return prepare(load("digits", [*common, *adapters, *settings])).simulation()


def resume_after_one_round(place, *given):
    """Check that a run stopped after one round ends with the bits of an uninterrupted one; return both."""
    whole, first, second = (simulation(place, *given) for _ in range(3))
    list(whole.rounds())
    first.step()
    second.restore(Saved(1, {name: t.clone() for name, t in first.tensors().items()}))
    list(second.rounds())
    for name, t in whole.tensors().items():
        assert torch.equal(second.tensors()[name], t), name
    return whole, second


def merged_weights(model) -> dict[str, torch.Tensor]:
    """The weights of the adapted layers of `model`, by peft's own sum of base and adapter."""
    layers = {n: m for n, m in model.named_modules() if hasattr(m, "get_delta_weight")}
    return {n: (m.get_base_layer().weight + m.get_delta_weight("default")).detach() for n, m in layers.items()}
