"""Run by torchrun in test_shards.py: two processes train one client, each with half of its frozen layers."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from fedadamw.engine.ranks import ALONE, Team, current_team
from fedadamw.engine.workspace import Workspace
from fedadamw.models.activation_checkpoints import checkpoint_layers
from support.tiny_models import config

TARGETS = {"llama": ["q_proj", "down_proj"], "qwen3": ["v_proj", "o_proj"], "gpt2": ["c_attn"]}
ROWS = (1, 4, 5)  # of a batch: fewer than processes, as many for each, and one more


def main(file: Path) -> None:
    """Write what each process saw of each kind of model."""
    team = current_team(torch.device("cpu"), 2)
    seen = {kind: measure(kind, team) for kind in TARGETS}
    everyone: list[Any] = [None, None]
    torch.distributed.all_gather_object(everyone, seen)
    if team.leads:
        file.write_text(json.dumps(everyone))


def measure(kind: str, team: Team) -> dict[str, Any]:
    """The worst difference to one process of losses and gradients, and the share of frozen layers held here."""
    model, whole = build(kind), Workspace(build(kind))
    team.shard(model.train())
    mine = Workspace(model)
    differences = []
    for checkpoints in (False, True):
        if checkpoints:
            checkpoint_layers(model, kind)
        for rows in ROWS:
            ids = torch.randint(0, 300, (rows, 9), generator=torch.Generator().manual_seed(rows))
            expected = backward(whole, ids, ALONE, None)
            for micro_batch in (None, 1):
                pairs = zip(backward(mine, ids, team, micro_batch), expected, strict=True)
                differences += [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]
    layers = [p for name, p in model.named_parameters() if not p.requires_grad and ("layers." in name or ".h." in name)]
    held = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in layers)
    return {"difference": max(differences), "held": held / sum(p.numel() for p in layers)}


def build(kind: str) -> nn.Module:
    """A model in float64 with adapters that add something."""
    torch.manual_seed(0)
    made = config(kind)
    model: nn.Module = get_peft_model(
        AutoModelForCausalLM.from_config(made).double(),
        LoraConfig(r=2, target_modules=TARGETS[kind], fan_in_fan_out=kind == "gpt2"),
        autocast_adapter_dtype=False,
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return model


def backward(work: Workspace, ids: Tensor, team: Team, micro_batch: int | None) -> tuple[Tensor, Tensor]:
    """The mean loss of the rows, and its gradient."""
    work.gradient.zero_()
    total = work.y.new_zeros(())
    for (part,), weights in team.own_rows((ids,), micro_batch):
        logits = work.module(input_ids=part, use_cache=False).logits
        losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), part[:, 1:], reduction="none").mean(-1)
        loss = (losses if weights is None else losses * weights).sum() / len(ids)
        loss.backward()
        total += loss.detach()
    team.sum_rows([work.gradient, total])
    return total, work.gradient


if __name__ == "__main__":
    main(Path(sys.argv[1]))
