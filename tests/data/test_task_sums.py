"""Every task scores training samples as it scores held-out ones, and pools clients' sums to the central score."""

import pytest
import torch
from support import tiny_models
from support.text_experiments import experiment

from fedadamw.data.answers import AnswerTask
from fedadamw.data.image_task import ImageTask
from fedadamw.prepare import texts
from fedadamw.prepare.problem import open_pretrained
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load
from fedadamw.validation import InputError

HELD_OUT = ["partition={kind: iid, clients: 5, held_out: 0.4}", "training.client_evaluation=1"]
TEMPLATES = ("data.prompt='Good or bad? {text}'", "data.response='{label}'", "data.label_column=label")
CHOICES = ("data.metrics=[choice, exact-match]", "data.choices=[bad, good]", "data.answer_tokens=4")
KINDS = {
    "images": ["data.max_train=120", "data.crop_padding=2", "data.flip=true"],
    "images on the CPU": ["data.resident=false", "data.crop_padding=2", "partition.clients=40"],
    "classes": ("bert", "text"),
    "matthews": ("bert", "cola"),
    "numbers": ("bert", "stsb"),
    "tokens": ("chat", "causal-lm", "data.text_column=text"),
    "answers": ("chat", "causal-lm", *TEMPLATES, *CHOICES),
}
SMALL = ["device=cpu", "threads=1", "training={rounds: 1, clients_per_round: 2, steps: 1, batch_size: 8}"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("sums")
    tiny_models.folder(path / "chat", "llama", template=tiny_models.TEMPLATE)
    tiny_models.folder(path / "bert", "bert")
    words = [("dull", "bad"), ("great", "good")]
    rows = [("the film was", i % 3 == 0, i) for i in range(60)]
    lines = [f"{text} {words[good][0]} {'really ' * (i % 4)},{words[good][1]}" for text, good, i in rows]
    (path / "classes.csv").write_text("\n".join(["text,label", *lines]))
    lines = [f"{text} {good},it was {i},{(i * 7 % 11) / 2}" for text, good, i in rows]
    (path / "numbers.csv").write_text("\n".join(["sentence1,sentence2,label", *lines]))
    lines = [f"{text} {good},{int(good)}" for text, good, i in rows]
    (path / "cola.csv").write_text("\n".join(["sentence,label", *lines]))
    return path


def experiment_of(place, name):
    given = KINDS[name]
    if isinstance(given, list):
        return load("digits", [*SMALL, *HELD_OUT, *given])
    kind, task, *settings = given
    source = {"numbers": "numbers.csv", "matthews": "cola.csv"}.get(name, "classes.csv")
    return experiment(place, *HELD_OUT, *settings, kind=kind, task=task, source=source)


def with_training_samples_held_out(prepared):
    """The task with the training samples as held-out ones."""
    chosen, train, device = prepared.experiment, prepared.train, prepared.device
    if isinstance(prepared.task, ImageTask):
        own = prepared.task
        how = {"inputs": own.inputs, "mean": tuple(own.mean.flatten()), "std": tuple(own.std.flatten())}
        return ImageTask(train, train, device=device, **how)
    inner = prepared.task.task if isinstance(prepared.task, AnswerTask) else prepared.task
    all_answered = chosen.model_copy(update={"data": chosen.data.model_copy(update={"answers": 10**6})})
    return texts.build_task(all_answered, inner.form, train, train, device, open_pretrained(chosen))


@pytest.mark.parametrize("name", KINDS)
def test_clients_are_scored_as_the_central_set_is(name, place):
    prepared = prepare(experiment_of(place, name))
    simulation = prepared.simulation()
    record, scores = simulation.step(), simulation.scores
    module, central = simulation.workspace.module.eval(), with_training_samples_held_out(prepared)
    samples = prepared.held_out.samples
    with torch.no_grad():
        outputs = central.outputs(module, 0, central.held_out)[samples]
        own = prepared.task.outputs_of(module, torch.from_numpy(samples))
    torch.testing.assert_close(own, outputs, rtol=1e-5, atol=1e-5)
    assert scores.samples == list(prepared.held_out.sizes)
    for client, part in zip(scores.each, own.split(scores.samples), strict=True):
        assert client.metrics == pytest.approx(prepared.task.score(part).metrics, rel=1e-5, abs=1e-6)
    union = prepared.task.score(own)
    assert record.clients_metrics == pytest.approx({"loss": union.loss, **union.metrics}, rel=1e-5, abs=1e-6)
    if not prepared.task.unpooled:
        parts = torch.stack([prepared.task.sums(part) for part in own.split(scores.samples)])
        pooled = prepared.task.pool(parts.sum(0))
        assert pooled.loss == pytest.approx(union.loss, abs=1e-10)
        assert pooled.metrics == pytest.approx(union.metrics, abs=1e-10)
        prepared.task.check_sums(parts.sum(0), len(samples))


def test_a_right_answer_that_is_no_choice_is_said_before_the_run(place):
    chosen = experiment_of(place, "answers")
    data = chosen.data.model_copy(update={"choices": ("fine", "bad"), "answers": 1})
    with pytest.raises(InputError, match=r"the right answer of (training|held-out) text [\d,]+ is 'good'"):
        prepare(chosen.model_copy(update={"data": data}))


def test_pieces_of_a_text_are_held_out_together(place, tmp_path):
    (tmp_path / "long.csv").write_text("text,label\n" + "\n".join(f"{'good film ' * (20 * i)},a" for i in range(1, 9)))
    settings = [*HELD_OUT, "partition.clients=1", "data.text_column=text", "data.max_length=16", "data.validation=0"]
    prepared = prepare(
        experiment(
            tmp_path,
            *settings,
            f"model={place / 'chat'}",
            f"data.test_source={tmp_path / 'long.csv'}",
            kind="chat",
            task="causal-lm",
            source="long.csv",
        )
    )
    rows = prepared.train.rows
    held_out, trained = (set(rows[part.samples]) for part in (prepared.held_out, prepared.partition))
    assert held_out.isdisjoint(trained)
    assert len(held_out) == round(0.4 * 8)
    assert len(prepared.held_out.samples) > len(held_out), "some are of several pieces"


ADAPTERS = ["{r: 2, aggregate: alternate}", "{r: 2, aggregate: residual}", "{r: 4, ranks: [2, 4, 2, 4, 2]}"]


@pytest.mark.parametrize("lora", [ADAPTERS[0], *(pytest.param(lora, marks=pytest.mark.slow) for lora in ADAPTERS[1:])])
def test_clients_are_scored_with_the_whole_model_whatever_part_of_it_trains(place, lora):
    rounds = ["training={rounds: 2, clients_per_round: 2, steps: 2, client_evaluation: 1}"]
    prepared = prepare(experiment(place, *HELD_OUT, *rounds, f"lora={lora}", source="classes.csv"))
    simulation = prepared.simulation()
    for _ in simulation.rounds():
        simulation.load()
        with torch.no_grad():
            samples = torch.from_numpy(prepared.held_out.samples)
            outputs = prepared.task.outputs_of(simulation.workspace.module.eval(), samples)
        expected, found = prepared.task.score(outputs), simulation.scores.pooled
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
        assert found.metrics == pytest.approx(expected.metrics, abs=1e-9)
