"""One client's own model from a run's folder: the scores that the run recorded for it."""

import json

import pytest
import torch
from support.trained_texts import lora, settings_of

from fedadamw.prepare.simulation import prepare
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.trained.export import export
from fedadamw.trained.load import open_run, open_trained
from fedadamw.validation import InputError

DIGITS = [
    "model={name: resnet-nano, norm: batch}",
    "partition={clients: 3, held_out: 0.2}",
    "training={rounds: 2, clients_per_round: 2, steps: 2, batch_size: 20, lr: 0.01, client_evaluation: 1}",
    "device=cpu",
    "threads=1",
]
FEDBN = "personal.parameters=['*normalization*']"


@pytest.mark.parametrize("memory", ["memory", pytest.param("disk", marks=pytest.mark.slow)])
def test_a_clients_model_has_the_scores_of_the_run(tmp_path, memory):
    experiment = load("digits", [*DIGITS, FEDBN, f"client_memory={memory}", "training.clients_per_round=3"])
    folder = RunFolder(tmp_path / "run")
    execute(experiment, folder, resume=False, report=False)
    line, prepared = last_scores(folder), prepare(experiment)
    models = [open_run(folder.path, client=client).model for client in line["clients"]]
    for client, model, loss in zip(line["clients"], models, line["loss"], strict=True):
        assert score_of(model, prepared, client).loss == pytest.approx(loss, abs=1e-5)
    heads = [model.state_dict() for model in models]
    differing = {name for name, t in heads[0].items() if not torch.equal(t, heads[1][name])}
    assert all("normalization" in name for name in differing), "with their running statistics"
    assert any("running_mean" in name for name in differing)


def last_scores(folder):
    return json.loads((folder.path / "client_scores.jsonl").read_text().splitlines()[-1])


def score_of(model, prepared, client):
    samples = torch.from_numpy(prepared.held_out[client])
    with torch.no_grad():
        return prepared.task.score(prepared.task.outputs_of(model.eval(), samples))


def test_an_exported_folder_is_the_clients_model(tmp_path):
    head = [
        "model={name: vit-nano, norm: group}",
        "personal={parameters: [classifier.*], finetune: 1}",
        "training.clients_per_round=3",
    ]
    experiment, folder = load("digits", [*DIGITS, *head]), RunFolder(tmp_path / "run")
    execute(experiment, folder, resume=False, report=False)
    line, to = last_scores(folder), tmp_path / "client"
    export(open_run(folder.path, client=1), to)
    loss, prepared = line["loss"][line["clients"].index(1)], prepare(experiment)
    assert score_of(open_trained(to).model, prepared, 1).loss == pytest.approx(loss, abs=1e-5)
    card = (to / "README.md").read_text()
    assert "| client | 1, with parameters of its own |" in card
    assert "| held out, after round 2 by this client |" in card
    assert f"| loss | {loss:.4f} |" in card
    assert "tuned" not in card


def test_what_has_no_such_client_is_said(tmp_path):
    own = load("digits", [*DIGITS, FEDBN, "training.rounds=1"])
    plain = load("digits", [*DIGITS, "training.rounds=1"])
    for name, experiment in (("own", own), ("plain", plain)):
        execute(experiment, RunFolder(tmp_path / name), resume=False, report=False)
    with pytest.raises(InputError, match="own: its clients have parameters of their own; take one's model"):
        open_run(tmp_path / "own")
    with pytest.raises(InputError, match="--client 3: the clients of .*own are 0 to 2"):
        open_run(tmp_path / "own", client=3)
    with pytest.raises(InputError, match="--client 1: all clients of .*plain have one model"):
        open_run(tmp_path / "plain", client=1)
    with pytest.raises(InputError, match="--client 1: clients keep their parameters of the last round; no --best"):
        open_run(tmp_path / "own", client=1, best=True)
    with pytest.raises(InputError, match="its clients have parameters of their own"):
        prepare(load("digits", [f"model.name={tmp_path / 'own'}", "device=cpu"]))
    asked = json.loads((tmp_path / "own/clients.jsonl").read_text())["clients"]
    with pytest.warns(UserWarning, match="--client . has not taken part"):
        open_run(tmp_path / "own", client=next(client for client in range(3) if client not in asked))


@pytest.mark.slow
def test_adapters_b_stays_and_is_exported(place, tmp_path):
    """FedSA-LoRA (arXiv 2410.01463): A is shared, B stays with the client."""
    settings = [*settings_of(place, "bert", "text", *lora("bert", "factors")), "personal.parameters=['*lora_B*']"]
    settings += ["partition.held_out=0.2", "training.client_evaluation=1", "training.clients_per_round=4"]
    experiment = load("digits", settings)
    folder = RunFolder(tmp_path / "run")
    simulation = execute(experiment, folder, resume=False, report=False)
    shared = [n for n in simulation.workspace.layout.names if n not in simulation.workspace.personal]
    assert all("lora_B" in name for name in simulation.workspace.personal)
    assert any("lora_A" in name for name in shared)
    assert len(simulation.state.server.x) == len(simulation.workspace.y) - len(simulation.algorithm.initial)
    clients = simulation.scores.clients[:2]
    found = [open_run(folder.path, client=client).model.state_dict() for client in clients]
    differing = {name for name, t in found[0].items() if not torch.equal(t, found[1][name])}
    assert all("lora_B" in name for name in differing)
