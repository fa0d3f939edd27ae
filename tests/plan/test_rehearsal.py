"""A rehearsed round holds what a real one holds: the same meter counts both."""

from dataclasses import replace

import pytest
import torch
from support import tiny_models
from transformers import AutoModelForCausalLM

from fedadamw.engine.states import iterate_tensors
from fedadamw.plan.counted import BASE, SERVER, TRAINED, TRAINING
from fedadamw.plan.data_shape import find_shape
from fedadamw.plan.meter import Meter
from fedadamw.plan.plan import make_plan
from fedadamw.plan.rehearsal import rehearse
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load
from fedadamw.vector import nbytes

CPU = torch.device("cpu")
SHORT = ["training.steps=1", "training.clients_per_round=2", "training.rounds=1", "threads=1", "device=cpu", "stack=1"]


def digits(*settings):
    return load("digits", [*SHORT, "compile=off", *settings])


def in_place(local, down, g, lr):
    """A step without temporaries, as the real one is for vectors longer than a chunk."""
    if hasattr(local, "k"):
        local.k.add_(1)


def real_peak(experiment):
    """Bytes of the tensors that a real round holds at most, and bytes that a client sends."""
    prepared = prepare(experiment)
    with Meter("all") as meter:
        for tensor in (*prepared.workspace.module.parameters(), *prepared.workspace.module.buffers()):
            tensor.view(-1)  # shows the meter what was there before
        prepared.workspace.gradient.view(-1)
        simulation = prepared.simulation(step="plain")
        if simulation.algorithm.elementwise:
            clients = getattr(simulation.clients, "clients", simulation.clients)  # under a clock
            clients.engine.step = in_place
        record = simulation.step()
    return meter.peak, record


@pytest.mark.parametrize(
    "setting",
    [
        "algorithm=fedadamw",
        "algorithm=scaffold",
        "algorithm=fedlamb",
        "algorithm=diloco",
        "training.outer.lr=0.7",
        "training.normalize=true",
        "devices.classes={slow: {share: 0.5, steps: 3}, fast: {share: 0.5}}",
    ],
)
def test_the_peak_is_that_of_a_real_round(setting):
    experiment = digits(setting)
    plan = rehearse(experiment, find_shape(experiment), CPU).counts
    peak, record = real_peak(experiment)
    assert plan.tensors + 2 * plan.memory == pytest.approx(peak, rel=0.02)
    assert (2 * plan.up_bytes, 2 * plan.down_bytes) == (record.up_bytes, record.down_bytes)


@pytest.mark.slow
@pytest.mark.parametrize("stack", [1, 2])
def test_gradients_of_samples_are_counted_and_no_batch_is_larger(stack):
    private = ["privacy.noise_multiplier=1", "partition.clients=4", f"stack={stack}", "model.name=vit-nano"]
    experiment, chunks = digits(*private), digits(*private, "training.micro_batch=16")
    whole, less = (rehearse(e, find_shape(e), CPU) for e in (experiment, chunks))
    peak, _ = real_peak(experiment)
    assert peak <= whole.counts.tensors + 2 * whole.counts.memory
    gradients = 4 * whole.trained * stack
    assert 16 * gradients < less.counts.tensors < 50 * gradients < whole.counts.tensors


@pytest.mark.filterwarnings("ignore:personal.parameters. no global model is tested")
def test_personal_parameters_are_planned_as_memories():
    experiment = digits("personal.parameters=['*mlp*', classifier.*]")
    plan = rehearse(experiment, find_shape(experiment), CPU).counts
    peak, record = real_peak(experiment)
    assert plan.tensors + plan.memory == pytest.approx(peak, rel=0.001)  # the last client trains: one memory is kept
    assert (2 * plan.up_bytes, 2 * plan.down_bytes) == (record.up_bytes, record.down_bytes)
    simulation = prepare(experiment).simulation()
    simulation.step()
    assert plan.memory == nbytes(simulation.clients.store.get(simulation.clients.sample(0)[0], 1))


@pytest.mark.parametrize("settings", [[], ["training.outer.lr=0.7"]], ids=["mean", "outer"])
def test_vectors_are_counted_exactly(settings):
    experiment = digits(*settings)
    plan = rehearse(experiment, find_shape(experiment), CPU)
    d = plan.trained
    server = prepare(experiment).simulation().state.server
    assert plan.counts.phases[TRAINING][SERVER] == nbytes(iterate_tensors(server))
    assert plan.counts.phases[TRAINING][TRAINED] == pytest.approx(2 * 4 * d, rel=0.01)


@pytest.mark.slow
def test_shards_split_the_frozen_layers(tmp_path):
    folder = tiny_models.folder(tmp_path / "llama", "llama", {**tiny_models.SIZES, "num_hidden_layers": 6})
    experiment = load("small/instruct-smollm2", [f"model={folder}", *SHORT, "data.max_length=8", "shards=2"])
    plan = make_plan(experiment, ranks=2)
    whole = replace(plan, experiment=experiment.model_copy(update={"shards": 1}))
    layer = nbytes(AutoModelForCausalLM.from_pretrained(folder).model.layers[0].parameters())
    spared = {phase: whole.phases[phase][BASE] - plan.phases[phase][BASE] for phase in plan.phases}
    assert set(spared.values()) == {6 * layer - 3 * layer - 2 * layer}  # two layers are whole at a time
    assert plan.needed == whole.needed - 2 * layer


@pytest.mark.slow
def test_stacked_clients_that_pack_are_rehearsed(tmp_path):
    folder = tiny_models.folder(tmp_path / "llama", "llama")
    settings = [f"model={folder}", *SHORT, "data.max_length=8", "stack=2"]
    experiment, packed = (load("small/instruct-smollm2", [*settings, *more]) for more in ([], ["data.packing=true"]))
    plans = [rehearse(e, find_shape(e), CPU) for e in (experiment, packed)]
    assert plans[1].stack == 2
    assert plans[0].counts.peak == pytest.approx(plans[1].counts.peak, rel=0.05)


@pytest.mark.slow
def test_dora_on_a_base_in_four_bits_is_rehearsed(tmp_path):
    folder = tiny_models.folder(tmp_path / "llama", "llama", tiny_models.WIDE)
    settings = [f"model={folder}", *SHORT, "data.max_length=8", "model.quantize=4bit"]
    plain, dora = (load("small/instruct-smollm2", [*settings, *more]) for more in ([], ["lora.dora=true"]))
    without, found = (rehearse(e, find_shape(e), CPU) for e in (plain, dora))
    layer = 64 + 32 + 32 + 64  # lengths of the outputs of q, k, v and o
    assert found.trained == without.trained + 2 * layer
    assert found.counts.saved > without.counts.saved
