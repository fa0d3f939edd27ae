"""Local steps by device, and updates that cannot be normalised by them: one clear line each."""

import pytest
import torch

from fedadamw.engine.step import COMPILE_S, has_compiler
from fedadamw.prepare.checks import check_settings
from fedadamw.prepare.choices import choose_step
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load
from fedadamw.validation import InputError

CPU = torch.device("cpu")
NORMALIZED = "training.normalize=true"
LORA = ("data.task=text", "data.source=./texts", "model.name=./bert")
SLOW = "devices.classes={fast: {share: 0.5}, slow: {share: 0.5, steps: 2}}"
EPOCHS = "training={epochs: 2, rounds: 2, batch_size: 50, normalize: true}"
PRIVATE = ("privacy.noise_multiplier=1", "training.clip=null", "federation.sample_counts=false")
PRIVATE_CLIENTS = ("privacy={unit: client, noise_multiplier: 1}", "federation.norm_factor=null")
REFUSED = {  # given, over Flower or not -> why
    (NORMALIZED, "training.mean=median"): r"set training.mean=weighted, not 'median'",
    (NORMALIZED, *LORA, "lora={r: 4, aggregate: exact}"): r"lora.aggregate='exact' .* set lora.aggregate=factors",
    (NORMALIZED, *LORA, "lora={r: 4, aggregate: residual}"): r"lora.aggregate='residual' takes",
    (NORMALIZED, *LORA, "lora={r: 4, ranks: {2: 0.5, 4: 0.5}}"): "leave out lora.ranks",
    (NORMALIZED, *PRIVATE_CLIENTS): "privacy.unit=client all .* set training.normalize=false",
    ("flower", EPOCHS, "federation.sample_counts=false"): "training.epochs=2 .* set federation.sample_counts=true",
    ("flower", EPOCHS, "federation.max_norm=3"): "federation.max_norm=3.0 bounds .* leave it out with training.epochs",
}
ACCEPTED = [
    (NORMALIZED, SLOW),
    (NORMALIZED, *LORA, "lora={r: 4, aggregate: alternate}"),
    (NORMALIZED, *LORA, "lora={r: 4, aggregate: frozen-a}"),
    (NORMALIZED, *PRIVATE),
    (EPOCHS, "federation={max_norm: 3, sample_counts: false}"),  # nothing is sent
    ("flower", EPOCHS),
    ("flower", NORMALIZED, "federation={max_norm: 3, sample_counts: false}"),
]


def check_given(given):
    check_settings(load("digits", [setting for setting in given if setting != "flower"]), remote="flower" in given)


@pytest.mark.parametrize("given", REFUSED, ids=" ".join)
def test_what_cannot_be_normalised_is_refused_by_one_line(given):
    with pytest.raises(InputError, match=REFUSED[given]) as caught:
        check_given(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ACCEPTED, ids=" ".join)
def test_what_can_be_is_accepted(given):
    check_given(given)


def test_a_run_takes_the_steps_of_its_devices():
    settings = ["training={rounds: 1, clients_per_round: 8, steps: 6, batch_size: 5}", "partition.clients=8"]
    prepared = prepare(load("digits", [*settings, SLOW, "device=cpu", "threads=1"]))
    simulation, taken = prepared.simulation(), {}
    simulation.listeners.append(lambda shard, answer: taken.update({shard.client: (answer.steps, float(answer.up.k))}))
    simulation.step()
    assert sorted(taken.values()) == [(2, 2.0)] * 4 + [(6, 6.0)] * 4


@pytest.mark.skipif(not has_compiler(CPU), reason="no C++ compiler")
def test_compiling_pays_by_the_steps_that_are_taken():
    ask = ["training={rounds: 10, clients_per_round: 4, steps: 100}", "compile=auto"]
    saved = {"cpu": COMPILE_S / (1000 * 10 * 4 * 80)}  # worth it from 80 steps on
    given = {"equal": [], "half": [SLOW], "faster": ["devices.classes={all: {share: 1, steps: 90}}"]}
    kinds = {name: choose_step(load("digits", [*ask, *more]), 1000, 50.0, CPU, saved) for name, more in given.items()}
    assert kinds == {"equal": "compiled", "half": "fused", "faster": "compiled"}
