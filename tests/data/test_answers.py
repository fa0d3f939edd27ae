"""Templates of prompts, and scores of a language model's answers to held-out prompts."""

import sys

import datasets
import numpy as np
import pytest
import torch
from support import tiny_models
from support.text_experiments import decode_texts, experiment

from fedadamw.data.answers import Question, find_question, likelihoods_of_choices, score_answers
from fedadamw.data.texts import Texts
from fedadamw.models.generation import Decoding, log_likelihoods, respond
from fedadamw.models.pretrained import Pretrained
from fedadamw.prepare.samples import load_samples
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.templates import fill_template
from fedadamw.validation import InputError

TEMPLATES = ("data.prompt=Good or bad? {sentence}", "data.response='{label}'", "data.label_column=label")
CHOICES = ("data.metrics=[choice, choice-norm, exact-match, rouge-l]", "data.choices=[bad, good]")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("answers")
    tiny_models.folder(path / "chat", "llama", template=tiny_models.TEMPLATE)
    g = np.random.default_rng(0)
    rows = {
        "sentence": [f"the {g.choice(['film', 'plot', 'cast'])} was {w}" for w in ["dull", "great"] * 20],
        "label": [0, 1] * 20,
        "score": [i / 2 for i in range(40)],
    }
    features = datasets.Features(
        sentence=datasets.Value("string"),
        label=datasets.ClassLabel(names=["bad", "good"]),
        score=datasets.Value("float64"),
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path / "reviews.parquet")
    return path


def questions(place, *settings):
    return experiment(place, *settings, kind="chat", task="causal-lm", source="reviews.parquet")


def test_a_template_makes_prompts_of_columns_and_class_names_of_labels(place):
    train, _ = load_samples(questions(place, *TEMPLATES))
    first = next(text for text in decode_texts(place, train, "chat") if "dull" in text)
    assert first.startswith("<user>Good or bad? the ")
    assert first.endswith("was dull</s><assistant>bad</s>")
    assert train.classes == ("bad", "good")
    numbered, _ = load_samples(questions(place, "data.prompt='{{{score}}} {sentence}'", "data.response='{label}'"))
    assert "<user>{6.5} the" in " ".join(decode_texts(place, numbered, "chat"))


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("{sentence.__class__}", r"has no column 'sentence.__class__'; it has sentence, label, score"),
        ("{sentence[0]}", "has no column 'sentence"),
        ("{sentence!r}", r"^data.prompt='\{sentence!r\}': braces hold the name of a column and nothing else"),
        ("{sentence:>9999999}", "braces hold the name of a column and nothing else"),
        ("{}", "braces hold the name of a column and nothing else"),
        ("{sentence", "a brace itself is written twice"),
        ("{other}", r"reviews.parquet' has no column 'other'; it has sentence, label, score$"),
    ],
)
def test_a_template_can_do_nothing_but_name_columns(place, prompt, says):
    with pytest.raises(InputError, match=says):
        load_samples(questions(place, f"data.prompt='{prompt}'", "data.response='{label}'"))


def test_braces_in_a_cell_stay_as_they_are():
    assert fill_template("{a} and {{b}}", {"a": "{b} {"}) == "{b} { and {b}"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (TEMPLATES[:1], "data.prompt and data.response go together"),
        ((*TEMPLATES, "data.text_column=sentence"), "data.prompt is a template: give it, or data.prompt_column or"),
        (("data.metrics=choice",), "data.metrics=choice needs data.choices, two or more answers"),
        (("data.metrics=bleu",), "data.metrics.0='bleu'"),
        (
            (*TEMPLATES, "data.metrics=choice", "data.choices=[fine, good]"),
            r"the right answer of held-out text .* 'bad'",
        ),
        (("data.text_column=sentence", "data.metrics=exact-match"), "the held-out texts have no prompts"),
        (
            (*TEMPLATES, "data.metrics=exact-match", "data.answer_tokens=60"),
            r"^data.answer_tokens=60: the model takes 64 tokens, and a prompt has \d+, an answer up to 60; shorten",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(place, settings, says):
    with pytest.raises(InputError, match=says):
        prepare(questions(place, *settings))


def test_an_evaluation_scores_answers_and_trains_as_without(place):
    plain, scored = (prepare(questions(place, *TEMPLATES, *more)).simulation() for more in ((), CHOICES))
    for simulation in (plain, scored):
        simulation.step()
    assert torch.equal(plain.state.server.x, scored.state.server.x)
    before, after = plain.evaluate(), scored.evaluate()
    assert list(after.metrics)[:4] == ["choice", "choice-norm", "exact-match", "rouge-l"]
    assert (before.loss, before.metrics) == (after.loss, dict(list(after.metrics.items())[4:]))
    assert all(0 <= after.metrics[name] <= 1 for name in list(after.metrics)[:4])
    again = scored.task.outputs(scored.workspace.module, 0, scored.task.held_out)
    halves = [scored.task.outputs(scored.workspace.module, *part) for part in ((0, 3), (3, scored.task.held_out))]
    assert torch.allclose(torch.cat(halves), again)


def test_only_some_questions_are_answered(place):
    task = prepare(questions(place, *TEMPLATES, *CHOICES, "data.answers=3")).simulation().task
    assert len(task.questions) == 3
    outputs = torch.zeros(task.held_out, 8, dtype=torch.float64)
    outputs[:, 1] = 1
    outputs[list(task.questions), 3] = 1
    outputs[next(iter(task.questions)), 4:] = 1
    assert task.score(outputs).metrics["choice"] == pytest.approx(1 / 3)


def test_the_question_is_what_comes_before_the_last_answer(place):
    words = Pretrained(str(place / "chat")).tokenizer
    parts = [("<user>was it", 0), ("good</s>", 1), ("<user>very", 0), (" bad</s>", 1)]
    ids = [(words(text)["input_ids"], mark) for text, mark in parts]
    tokens = np.concatenate([i for i, _ in ids])
    marks = np.concatenate([[mark] * len(i) for i, mark in ids])
    texts = Texts(tokens, marks, np.array([0, len(tokens)]), np.zeros(1), ("text",))
    question = find_question(texts, 0, words)
    assert (words.decode(question.prompt), question.answer) == ("<user>was itgood</s><user>very", "bad")


def test_scores_are_those_of_squad_and_of_rouge():
    right = ["positive", "the cat sat", "a b c d"]
    assert score_answers("exact-match", ["Positive.", "cat  sat", "a b"], right).tolist() == [1, 1, 0]
    rouge = score_answers("rouge-l", ["Positive.", "the cat sat down", "d c b a"], right).tolist()
    assert rouge == pytest.approx([1, 2 * 3 / 7, 1 / 4])


def test_likelihoods_are_sums_over_the_answers_tokens(place):
    pretrained = Pretrained(str(place / "chat"))
    words, model = pretrained.tokenizer, prepare(questions(place, *TEMPLATES)).simulation().workspace.module.eval()
    asked = [Question(words(text)["input_ids"], "") for text in ("the film was very", "a")]
    choices = ("good", "not so good at all")
    with torch.no_grad():
        found = likelihoods_of_choices(model, words, asked, choices, 3)
        for row, question in zip(found, asked, strict=True):
            for value, choice in zip(row, choices, strict=True):
                ids = words(choice, add_special_tokens=False)["input_ids"]
                logits = model(input_ids=torch.tensor([question.prompt + ids])).logits[0].double().log_softmax(-1)
                expected = sum(float(logits[len(question.prompt) - 1 + i, token]) for i, token in enumerate(ids))
                assert float(value) == pytest.approx(expected, abs=1e-5)
        assert log_likelihoods(model, [], [], 0, 3).tolist() == []


def test_only_the_answers_tokens_get_logits(place):
    model = prepare(questions(place, *TEMPLATES)).simulation().workspace.module.eval()
    shapes = []
    model.lm_head.register_forward_hook(lambda _, __, out: shapes.append(out.shape[1]))
    log_likelihoods(model, [[5] * 9, [5] * 10], [[6], [7, 8]], 0, 2)
    assert shapes == [4]  # from the last token of the shorter prompt to the end of the longer answer


def test_what_is_drawn_depends_on_its_seed_alone(place):
    pretrained = Pretrained(str(place / "chat"))
    model = prepare(questions(place, *TEMPLATES)).simulation().workspace.module.eval()
    prompts = [pretrained.tokenizer(text)["input_ids"] for text in ("the film", "a very good", "bad")]

    def draw(temperature, seed):
        return list(respond(model, pretrained.tokenizer, prompts, Decoding(8, temperature, seed), 2))

    state = torch.random.get_rng_state()
    first, same, other = draw(1.0, 1), draw(1.0, 1), draw(1.0, 2)
    assert first == same != other
    assert torch.equal(torch.random.get_rng_state(), state)
    assert draw(1e-6, 1) == draw(0.0, 5)


def test_a_missing_library_is_named(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.text", None)
    with pytest.raises(InputError, match=r"^data.metrics needs torchmetrics: pip install 'torchmetrics>=1.6'$"):
        prepare(questions(place, *TEMPLATES, "data.metrics=rouge-l"))
