"""Text for language models: what of plain text, prompts and conversations is learned."""

import json

import numpy as np
import pytest
import torch
from support import tiny_models
from support.checkout import SHARED, need
from support.text_experiments import decode_texts, experiment

from fedadamw.data.conversations import encode_conversation
from fedadamw.data.text_tasks import LanguageTask
from fedadamw.data.texts import Texts
from fedadamw.models.pretrained import Pretrained
from fedadamw.prepare.samples import load_samples
from fedadamw.prepare.simulation import prepare
from fedadamw.validation import InputError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("dialogues")
    tiny_models.folder(path / "llama", "llama")
    tiny_models.folder(path / "chat", "llama", template=tiny_models.TEMPLATE)
    return path


def language(place, tmp_path, rows, *settings, kind="llama"):
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return experiment(place, f"data.source={path}", *settings, kind=kind, task="causal-lm")


def learned(place, texts: Texts, kind="llama") -> list[str]:
    """The marked parts of the texts, in words."""
    words = Pretrained(str(place / kind)).tokenizer
    parts = zip(np.split(texts.tokens, texts.starts[1:-1]), np.split(texts.marks, texts.starts[1:-1]), strict=True)
    return [words.decode(tokens[marks == 1]) for tokens, marks in parts]


def test_of_a_prompt_and_its_answer_the_answer_is_learned(place, tmp_path):
    rows = [{"instruction": "how was it", "input": "the film", "output": "very good"}] * 5
    train, _ = load_samples(language(place, tmp_path, rows))
    assert decode_texts(place, train, "llama")[0] == "how was it\nthe film\nvery good</s>"
    assert learned(place, train) == ["very good</s>"] * 4


def test_of_a_conversation_what_the_assistant_says_is_learned(place, tmp_path):
    talk = [
        {"role": "user", "content": "how was it"},
        {"role": "assistant", "content": "good"},
        {"role": "user", "content": "very"},
        {"role": "assistant", "content": "great"},
    ]
    train, _ = load_samples(language(place, tmp_path, [{"messages": talk}] * 5, kind="chat"))
    assert (
        decode_texts(place, train, "chat")[0]
        == "<user>how was it</s><assistant>good</s><user>very</s><assistant>great</s>"
    )
    assert learned(place, train, "chat")[0] == "good</s>great</s>"


def test_every_answer_is_learned_where_the_template_shows_the_last_one_otherwise(place, tmp_path):
    template = (
        "{% for m in messages %}<{{ m['role'] }}>"
        "{% if loop.last and m['role'] == 'assistant' %}<think></think>{% endif %}{{ m['content'] }}</s>{% endfor %}"
    )
    tiny_models.folder(tmp_path / "thinks", "llama", template=template)
    talk = [
        {"role": r, "content": c}
        for r, c in (("user", "a"), ("assistant", "good"), ("user", "b"), ("assistant", "bad"))
    ]
    rows = [{"messages": talk}] * 5
    train, _ = load_samples(language(place, tmp_path, rows, f"model={tmp_path / 'thinks'}"))
    assert learned(place, train)[0] == "good</s>bad</s>"


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "asked", "answer", "expected"),
    [
        (CHATML, "pick a or b", "a", "a<|im_end|>"),  # and not the a of `assistant`
        (CHATML, "was it", "good\n", "good\n<|im_end|>"),
        (CHATML, "was it", "", ""),
        (INST, "I or you", "I", " I</s>"),  # and not that of [/INST]; its token may have the blank before it
        (INST, "was it", "good film", " good film</s>"),
    ],
)
def test_an_answer_is_found_after_what_announces_it(template, asked, answer, expected):
    words = tiny_models.tokenizer(template=template)
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    talk = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    ids, marks = encode_conversation(words, talk)
    learned = [i for i, mark in zip(ids, marks, strict=True) if mark]
    assert words.decode(learned).strip() == expected.strip()
    before = words.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True)
    assert not answer or words.decode(ids[: marks.index(1)]).rstrip() == before.rstrip()


THINKS = CHATML.replace("assistant\\n{% endif", "assistant\\n<think>\\n{% endif")


@pytest.mark.parametrize(
    ("template", "talk"),
    [
        (CHATML, [("assistant", "a"), ("user", "b"), ("assistant", "a")]),
        (THINKS, [("user", "pick a or b"), ("assistant", "a"), ("user", "a"), ("assistant", "a")]),
    ],
    ids=["the assistant begins", "an announcement that training does not show"],
)
def test_every_answer_is_found_in_its_own_message(template, talk):
    words = tiny_models.tokenizer(template=template)
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    ids, marks = encode_conversation(words, [{"role": role, "content": said} for role, said in talk])
    assert words.decode([i for i, mark in zip(ids, marks, strict=True) if mark]) == "a<|im_end|>" * 2


DROPS = """{%- set ns = namespace(last=0) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- set c, thought = m.content, m.reasoning_content or '' -%}
{%- if m.role == 'assistant' and '</think>' in c -%}
{%- set thought, c = c.split('</think>')[0].split('<think>')[-1], c.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{{- '<|im_start|>' + m.role + '\\n' -}}
{%- if m.role == 'assistant' and loop.index0 > ns.last -%}
{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- c -}}
{%- for call in m.tool_calls or [] -%}
{{- '\\n<tool_call>\\n' + call.function.name + call.function.arguments | tojson + '\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}"""  # as Qwen3's: thoughts before the last question are left out
STRICT = """{%- set ns = namespace(asked=false) -%}
{%- for m in messages -%}
{%- if m.role == 'user' or (m.role == 'assistant' and m.tool_calls is undefined) -%}
{%- if (m.role == 'user') == ns.asked -%}{{ raise_exception('roles must alternate') }}{%- endif -%}
{%- set ns.asked = not ns.asked -%}
{%- endif -%}
{%- if m.role == 'user' -%}[INST] {{ m.content }} [/INST]
{%- elif m.role == 'tool' -%}[RESULT]{{ m.content }}[/RESULT]
{%- elif m.tool_calls is defined -%}[CALL]{{ m.tool_calls | tojson }}<|im_end|>
{%- else -%} {{ m.content }}</s>
{%- endif -%}{%- endfor -%}"""  # as Mistral's: an answer to a call is refused where there is no call
LOOK = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": {"at": "film", "then": None}}}]
OTHER_END = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.tool_calls %}look<|im_end|>{% else %}</s>{% endif %}"
    "{% endfor %}"
)


def said(role, content, **more):
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("template", "talk", "expected"),
    [
        (
            DROPS,
            [
                said("assistant", "<think>\nlazy\n</think>\n\na dog"),
                said("user", "and?"),
                said("assistant", "<think>\nquick\n</think>\n\na fox"),
            ],
            ["a dog<|im_end|>", "<think>\nquick\n</think>\n\na fox<|im_end|>"],
        ),
        (DROPS, [said("assistant", "<think>quick</think>a fox")], ["<think>\nquick\n</think>\n\na fox<|im_end|>"]),
        (DROPS, [said("assistant", "a fox", reasoning_content="quick")], ["quick\n</think>\n\na fox<|im_end|>"]),
        (DROPS, [said("assistant", "a fox", reasoning_content="quick"), said("user", "a")], ["a fox<|im_end|>"]),
        (DROPS, [said("assistant", "a fox")], ["a fox<|im_end|>"]),
        (
            DROPS,
            [
                said("assistant", None, tool_calls=LOOK),
                said("user", "dog"),
                said("assistant", "it is", tool_calls=None),
            ],
            ['<tool_call>\nlook{"at": "film"}\n</tool_call><|im_end|>', "it is<|im_end|>"],
        ),
        (
            STRICT,
            [said("assistant", None, tool_calls=LOOK[:1]), said("tool", "dog"), said("assistant", "a dog")],
            [
                '[CALL][{"id": "1", "type": "function", '
                '"function": {"name": "look", "arguments": {"at": "film"}}}]<|im_end|>',
                "a dog</s>",
            ],
        ),
        (OTHER_END, [said("assistant", "see: ", tool_calls=LOOK), said("tool", "dog")], ["see: look<|im_end|>"]),
        (CHATML.replace("m['content']", "m['content'] | upper"), [said("assistant", "good")], ["GOOD<|im_end|>"]),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            [said("assistant", "b")],
            [],
        ),
    ],
)
def test_what_a_template_shows_of_thoughts_and_calls_is_learned(template, talk, expected):
    words = tiny_models.tokenizer(template=template)
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    ids, marks = encode_conversation(words, [said("user", "was it a or b", name=None), *talk])
    assert words.decode([i for i, mark in zip(ids, marks, strict=True) if mark]) == "".join(expected)


def test_empty_texts_are_left_out_and_counted(place, tmp_path):
    rows = [{"text": "good film" if i % 2 else ""} for i in range(10)]
    with pytest.warns(UserWarning, match="5 of 10 texts are empty and are left out"):
        train, _ = load_samples(language(place, tmp_path, rows))
    assert len(train) == 4


GOOD = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("talk", "line"),
    [
        (None, "column 'messages' holds None where a list of role and content"),
        ([], r"column 'messages' holds \[\] where"),
        (
            [{"role": "user", "content": "a"}, {"role": None, "content": "b"}],
            "where a list of role and content",
        ),
        ([{"role": "assistant", "content": "first"}], "the chat template refuses a conversation: .*user first"),
        (
            [*GOOD, {"role": "user", "content": "break"}],
            "the chat template refuses a conversation: ZeroDivisionError: ",
        ),
    ],
)
def test_conversations_that_cannot_be_used_are_left_out_and_counted(place, tmp_path, talk, line):
    strict = (
        "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}"
        "{% if messages[-1]['content'] == 'break' %}{{ 1 / 0 }}{% endif %}" + tiny_models.TEMPLATE
    )
    tiny_models.folder(tmp_path / "strict", "llama", template=strict)
    model = f"model={tmp_path / 'strict'}"
    rows = [{"messages": GOOD}, {"messages": talk}] * 3
    first = f"3 of 6 conversations cannot be used and are left out; the first in row 2: .*{line}"
    whole = ("data.validation=0", f"data.test_source={tmp_path / 'talk.jsonl'}")
    with pytest.warns(UserWarning, match=first) as said:
        prepared = prepare(language(place, tmp_path, rows, model, *whole))
    assert len([one for one in said if "cannot be used" in str(one.message)]) == 2  # of the training and held-out set
    for found in (prepared.train, prepared.test):
        assert found.rows.tolist() == [0, 2, 4]
        assert learned(place, found, "chat") == ["b</s>"] * 3
    assert prepared.facts["skipped"] == [3, 3]
    with pytest.raises(InputError, match=f"none of 3 conversations can be used; the first in row 1: .*{line}") as none:
        load_samples(language(place, tmp_path, rows[1::2], model))
    assert "\n" not in str(none.value)


def test_groups_and_labels_stay_with_their_conversations(place, tmp_path):
    rows = [{"messages": GOOD if i % 3 else [], "who": f"critic {i % 2}", "label": i % 2} for i in range(12)]
    own = ("partition={kind: column, column: who}", "data.label_column=label", "data.validation=0")
    with pytest.warns(UserWarning, match="4 of 12 conversations cannot be used"):
        train, _ = load_samples(
            language(place, tmp_path, rows, *own, f"data.test_source={tmp_path / 'talk.jsonl'}", kind="chat")
        )
    assert train.rows.tolist() == [i for i in range(12) if i % 3]
    assert train.labels.tolist() == [i % 2 for i in train.rows]
    assert train.groups.tolist() == [f"critic {i % 2}" for i in train.rows]


def test_a_null_content_is_an_empty_one(place, tmp_path):
    talk = [{"role": "user", "content": None}, {"role": "assistant", "content": "good"}]
    train, _ = load_samples(language(place, tmp_path, [{"messages": talk}] * 5, kind="chat"))
    assert decode_texts(place, train, "chat")[0] == "<user></s><assistant>good</s>"
    assert learned(place, train, "chat")[0] == "good</s>"


def test_prompts_that_leave_nothing_to_learn_are_left_out(place, tmp_path):
    rows = [{"prompt": "it was a film " * i, "completion": "good"} for i in (1, 60)] * 5
    with pytest.warns(UserWarning, match="5 of 10 texts have nothing to learn within 64 tokens and are left out"):
        train, test = load_samples(language(place, tmp_path, rows))
    assert len(train) + len(test) == 5
    with pytest.raises(InputError, match="nothing is left to learn within 64 tokens"):
        load_samples(language(place, tmp_path, rows[1::2]))


def test_no_text_is_both_trained_on_and_held_out(place, tmp_path):
    rows = [{"text": f"{word} film " * 60} for word in tiny_models.WORDS[:10]]
    train, test = load_samples(language(place, tmp_path, rows))
    assert len(test) > 2
    assert set(train.rows) & set(test.rows) == set()
    assert len(set(train.rows) | set(test.rows)) == 10


def test_a_named_prompt_is_not_asked_twice(place, tmp_path):
    rows = [{"input": "how was it", "output": "good"}] * 5
    named = ["data.prompt_column=input", "data.response_column=output"]
    train, _ = load_samples(language(place, tmp_path, rows, *named))
    assert decode_texts(place, train, "llama")[0] == "how was it\ngood</s>"


def test_a_chat_template_is_used_for_prompts_too(place, tmp_path):
    rows = [{"prompt": "how was it", "completion": "good"}] * 5
    train, _ = load_samples(language(place, tmp_path, rows, kind="chat"))
    assert decode_texts(place, train, "chat")[0] == "<user>how was it</s><assistant>good</s>"
    assert learned(place, train, "chat")[0] == "good</s>"


def test_plain_text_is_learned_whole_in_pieces_that_fit(place, tmp_path):
    rows = [{"text": "the film was very good " * 40, "who": "a"}, {"text": "bad", "who": "b"}] * 2
    train, _ = load_samples(
        language(place, tmp_path, rows, "data.validation=0", f"data.test_source={tmp_path / 'talk.jsonl'}")
    )
    assert train.lengths.max() == 64
    assert "".join(decode_texts(place, train, "llama")[:-1]).startswith(rows[0]["text"] + "</s>")
    assert learned(place, train) == decode_texts(place, train, "llama")


def test_a_language_models_loss_is_that_of_what_is_learned(place, tmp_path):
    rows = [{"prompt": "how was it", "completion": w} for w in ("very good", "bad", "the plot was poor", "dull", "a")]
    sim = prepare(language(place, tmp_path, rows)).simulation()
    task: LanguageTask = sim.task
    model = sim.workspace.module.eval()
    everything = torch.arange(4)
    losses = task.losses(model, task.batch(everything, torch.empty(4, 0)))
    for i in everything:
        ids, marks = (t[:, : task.texts.lengths[i]] for t in task.batch(i[None], torch.empty(1, 0)))
        labels = torch.where(marks == 1, ids, -100)
        expected = model(input_ids=ids, labels=labels).loss  # transformers' own shift and mask
        torch.testing.assert_close(losses[i], expected, rtol=1e-5, atol=1e-6)
    found = sim.evaluate()
    assert found.metrics["perplexity"] == pytest.approx(np.exp(found.loss))


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        (("training.batch_size=50",), 20),
        (("training.batch_size=7",), 7),
        (("training.batch_size=50", "training.micro_batch=3"), 3),
        (("training.micro_batch=3", "training.evaluate_batch=5"), 5),
    ],
)
def test_an_evaluation_takes_no_more_texts_at_once_than_it_is_told(place, tmp_path, settings, most):
    rows = [{"text": "the film was very good " * (i % 5 + 1)} for i in range(60)]
    whole = ("data.validation=0.5", "training.evaluate_batch=30")
    simulation = prepare(language(place, tmp_path, rows, *whole)).simulation()
    expected = simulation.evaluate()
    own = prepare(language(place, tmp_path, rows, "data.validation=0.5", *settings)).simulation()
    rows_at_once = []
    hook = own.workspace.module.register_forward_hook(lambda _, __, out: rows_at_once.append(len(out.logits)))
    found = own.evaluate()
    hook.remove()
    assert max(rows_at_once) == most
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-5)


@pytest.mark.slow
def test_a_language_model_with_fresh_weights_learns_real_text(place):
    """A model of the folder's shape from scratch on reviews of films, from real sentences to a lower perplexity."""
    source = need(SHARED / "glue-sst2")
    settings = ["data.max_train=2000", "data.max_test=100", "data.validation=0", "model.fresh=true"]
    train = "training={rounds: 4, clients_per_round: 2, steps: 15, batch_size: 16, lr: 0.01}"
    sim = prepare(
        experiment(
            place, *settings, train, "partition.clients=4", f"data.source={source}", kind="llama", task="causal-lm"
        )
    ).simulation()
    before = sim.evaluate().metrics["perplexity"]
    records = list(sim.rounds())
    assert before > 300
    assert records[-1].test_metrics["perplexity"] < 0.2 * before
