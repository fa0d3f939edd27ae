"""Small text runs to export and evaluate, and what their models give."""

import torch

from fedadamw.engine.simulate import Saved, Simulation
from fedadamw.prepare.simulation import prepare
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load

TARGETS = {"bert": "[query,value,dense]", "llama": "[q_proj,v_proj]"}


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
    simulation = prepare(experiment).simulation()
    simulation.restore(Saved(*folder.load(experiment)))
    simulation.load()
    simulation.workspace.module.eval()
    return folder, simulation


def logits(model, simulation) -> torch.Tensor:
    task = simulation.task
    batch = task.batch(torch.arange(20), torch.empty(20, 0))
    inputs = batch[: len(task.form.inputs(*task.texts.gather(torch.arange(1))))]
    with torch.no_grad():
        return task.form.logits(model.eval(), inputs)


def assert_no_path(folder, *paths):
    texts = [file for file in folder.rglob("*") if file.suffix != ".safetensors"]
    assert {"README.md", "fedadamw.json"} < {file.name for file in texts}
    found = [(file.name, str(path)) for path in paths for file in texts if str(path) in file.read_text()]
    assert found == []
