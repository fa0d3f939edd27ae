"""Scores of a language model's answers to held-out prompts: exact match, ROUGE-L, the likeliest of some choices.

The prompt is a held-out text up to its last learned part, which is the right answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedadamw.data.sums import ROUNDING
from fedadamw.data.texts import Texts
from fedadamw.models.generation import Decoding, Ids, log_likelihoods, respond
from fedadamw.task import Batch, Evaluation, Model, Task
from fedadamw.validation import InputError, check, missing_extra_error

if TYPE_CHECKING:
    from fedadamw.data.samples import Array

WRITTEN = ("exact-match", "rouge-l")  # metrics of an answer that the model writes
CHOSEN = ("choice", "choice-norm")  # metrics of the likeliest of some answers


class Asking(NamedTuple):
    """Which answers are asked for, and how they are scored."""

    metrics: tuple[str, ...]  # of WRITTEN and CHOSEN, the main one first
    most: int  # held-out prompts to answer, at most
    tokens: int  # of the longest answer
    choices: tuple[str, ...]  # possible answers, for CHOSEN


class Question(NamedTuple):
    """A held-out prompt and its right answer."""

    prompt: Ids
    answer: str


class AnswerTask:
    """A language task whose evaluations also answer some held-out prompts, evenly spread over the texts.

    Of a client's own held-out texts all are answered.

    positions: the tokens that the model takes, None if any number. Raises InputError if texts have no prompts, if an
    answer has no room after one, or if a right answer is not among the choices.
    """

    def __init__(
        self,
        task: Task,
        train: Texts,
        test: Texts,
        tokenizer: Any,
        asking: Asking,
        *,
        size: int,
        positions: int | None = None,
    ) -> None:
        check_library(asking.metrics)
        self.task, self.tokenizer, self.asking, self.size = task, tokenizer, asking, size
        self.train, self.positions = train, positions
        count = min(asking.most, len(test))
        chosen = [int(i) for i in np.linspace(0, len(test), count, endpoint=False)]
        self.questions = self._find_questions(test, chosen, "held-out")
        self._asked: dict[int, Question] = {}  # of training texts, by number

    def ask(self, samples: Sequence[int]) -> None:
        """Find the questions of training texts that `outputs_of` will be asked for; raises InputError as at first."""
        new = [i for i in samples if i not in self._asked]
        self._asked |= self._find_questions(self.train, new, "training")

    def _find_questions(self, texts: Texts, chosen: Sequence[int], which: str) -> dict[int, Question]:
        """Return the questions of some texts, checked; which: `held-out` or `training`."""
        questions = {i: find_question(texts, i, self.tokenizer) for i in chosen}
        if any(name in CHOSEN for name in self.asking.metrics):
            for i, question in questions.items():
                _check_choice(question.answer, self.asking.choices, f"{which} text {i + 1:,}")
        if self.positions is not None and questions:
            self._check_room(self.positions, questions.values())
        return questions

    @property
    def resident(self) -> bool:
        """As of the language task."""
        return self.task.resident

    @property
    def lengths(self) -> Tensor | None:
        """As of the language task."""
        return self.task.lengths

    @property
    def held_out(self) -> int:
        """As of the language task."""
        return self.task.held_out

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """As of the language task."""
        return self.task.draw(count, generator)

    def batch(self, samples: Tensor, drawn: Tensor) -> Batch:
        """As of the language task."""
        return self.task.batch(samples, drawn)

    def losses(self, model: Model, batch: Batch) -> Tensor:
        """As of the language task."""
        return self.task.losses(model, batch)

    def outputs(self, model: Model, start: int, stop: int) -> Tensor:
        """Return the language task's outputs; then 1 for an answered prompt, and its scores; (stop - start, c)."""
        asked = {i - start: question for i, question in self.questions.items() if start <= i < stop}
        return self._add_answers(model, self.task.outputs(model, start, stop), asked)

    def outputs_of(self, model: Model, samples: Tensor) -> Tensor:
        """Return the same of training texts, all of which are answered, (n, c)."""
        numbers = samples.tolist()
        self.ask(numbers)
        asked = {place: self._asked[i] for place, i in enumerate(numbers)}
        return self._add_answers(model, self.task.outputs_of(model, samples), asked)

    def _add_answers(self, model: Model, own: Tensor, asked: Mapping[int, Question]) -> Tensor:
        """Add the scores of the answers to the questions of some rows to the language task's outputs (n, c)."""
        scores = own.new_zeros(len(own), 1 + len(self.asking.metrics))
        if asked:
            questions = list(asked.values())
            columns = {**self._score_written(model, questions), **self._score_chosen(model, questions)}
            values = torch.stack([columns[name] for name in self.asking.metrics], -1)
            answered = torch.tensor(list(asked))
            scores[answered, 0] = 1
            scores[answered, 1:] = values.to(scores)
        return torch.cat([own, scores], -1)

    def score(self, outputs: Tensor) -> Evaluation:
        """Return the mean scores of the answers before the language task's metrics, and its loss."""
        width = 1 + len(self.asking.metrics)
        own, scores = self.task.score(outputs[:, :-width]), outputs[:, -width:]
        means = scores[scores[:, 0] > 0, 1:].mean(0).tolist()
        return Evaluation(own.loss, {**dict(zip(self.asking.metrics, means, strict=True)), **own.metrics})

    @property
    def unpooled(self) -> tuple[str, ...]:
        """As of the language task: scores of answers are means."""
        return self.task.unpooled

    def sums(self, outputs: Tensor) -> Tensor:
        """Return the language task's sums, then the number of answers and the sums of their scores, (k,)."""
        width = 1 + len(self.asking.metrics)
        return torch.cat([self.task.sums(outputs[:, :-width]), outputs[:, -width:].double().sum(0).cpu()])

    def pool(self, sums: Tensor) -> Evaluation:
        """Return the mean scores of the answers before the language task's metrics, and its loss."""
        width = 1 + len(self.asking.metrics)
        own, (answers, *scores) = self.task.pool(sums[:-width]), sums[-width:].tolist()
        means = {name: value / max(answers, 1) for name, value in zip(self.asking.metrics, scores, strict=True)}
        return Evaluation(own.loss, {**means, **own.metrics})

    def check_sums(self, sums: Tensor, most: int | None) -> None:
        """Raise InputError if no texts, at most `most`, have these sums."""
        width = 1 + len(self.asking.metrics)
        check(sums.dim() == 1 and len(sums) > width, f"sums: {tuple(sums.shape)} numbers are too few")
        self.task.check_sums(sums[:-width], most)
        answers, *scores = sums[-width:].tolist()
        possible = answers.is_integer() and 0 <= answers <= float(sums[0])
        check(possible, f"sums: {answers:g} answers to {int(sums[0]):,} texts")
        for name, value in zip(self.asking.metrics, scores, strict=True):
            check(
                0 <= value <= answers * (1 + ROUNDING), f"sums: {name} of {answers:,.0f} answers adds up to {value:g}"
            )

    def _check_room(self, positions: int, questions: Iterable[Question]) -> None:
        """Raise InputError if the longest prompt and an answer are more tokens than the model takes."""
        metrics, given, longest = self.asking.metrics, f"data.answer_tokens={self.asking.tokens}", 0
        if any(name in WRITTEN for name in metrics):
            longest = self.asking.tokens
        if any(name in CHOSEN for name in metrics):
            of_choice = max(len(ids) for ids in _encode_choices(self.tokenizer, self.asking.choices))
            given, longest = (given, longest) if longest >= of_choice else ("data.choices", of_choice)
        asked = max(len(question.prompt) for question in questions)
        check(
            asked + longest <= positions,
            f"{given}: the model takes {positions:,} tokens, and a prompt has {asked:,}, an answer up to {longest:,}; "
            "shorten one of them (data.max_length cuts prompts)",
        )

    def _score_written(self, model: Model, asked: Sequence[Question]) -> dict[str, Tensor]:
        names = [name for name in self.asking.metrics if name in WRITTEN]
        if not names:
            return {}
        decoding = Decoding(self.asking.tokens)
        written = list(respond(model, self.tokenizer, [q.prompt for q in asked], decoding, self.size))
        return {name: score_answers(name, written, [q.answer for q in asked]) for name in names}

    def _score_chosen(self, model: Model, asked: Sequence[Question]) -> dict[str, Tensor]:
        names = [name for name in self.asking.metrics if name in CHOSEN]
        if not names:
            return {}
        likely = likelihoods_of_choices(model, self.tokenizer, asked, self.asking.choices, self.size)
        right = torch.tensor([self.asking.choices.index(q.answer) for q in asked])
        characters = torch.tensor([len(choice) for choice in self.asking.choices])
        per = {"choice": likely, "choice-norm": likely / characters}
        return {name: (per[name].argmax(-1) == right).double() for name in names}


def likelihoods_of_choices(
    model: Any, tokenizer: Any, asked: Sequence[Question], choices: Sequence[str], size: int
) -> Tensor:
    """Return the log-probability of each choice after each question's prompt, (questions, choices), on the CPU.

    Of the choice's tokens alone, without one that ends it, as EleutherAI's lm-evaluation-harness does.
    """
    ids = _encode_choices(tokenizer, choices)
    prompts = [q.prompt for q in asked for _ in choices]
    answers = ids * len(asked)
    found = log_likelihoods(model, prompts, answers, tokenizer.pad_token_id or 0, size)
    return found.view(len(asked), len(choices)).cpu()


def _encode_choices(tokenizer: Any, choices: Sequence[str]) -> list[Ids]:
    return [tokenizer(choice, add_special_tokens=False)["input_ids"] for choice in choices]


def find_question(texts: Texts, i: int, tokenizer: Any) -> Question:
    """Return the tokens of text i before its last learned part, and that part in words."""
    start, stop = texts.starts[i], texts.starts[i + 1]
    tokens, learned = texts.tokens[start:stop], np.flatnonzero(texts.marks[start:stop])
    first = _last_run(learned)
    check(first > 0, "data.metrics scores answers to prompts, and the held-out texts have no prompts")
    answer = tokenizer.decode(tokens[first : learned[-1] + 1].tolist(), skip_special_tokens=True)
    return Question(tokens[:first].tolist(), answer.strip())


def _last_run(numbers: "Array") -> int:
    """Return the first of the consecutive numbers that end an ascending array."""
    gaps = np.flatnonzero(np.diff(numbers) > 1)
    return int(numbers[gaps[-1] + 1] if len(gaps) else numbers[0])


def _check_choice(answer: str, choices: Sequence[str], text: str) -> None:
    if answer not in choices:
        raise InputError(f"data.choices={list(choices)}: the right answer of {text} is {answer[:60]!r}")


def check_library(metrics: Sequence[str]) -> None:
    """Raise InputError if the library that some metrics need, torchmetrics, is not installed."""
    if any(name in WRITTEN for name in metrics):
        try:
            import torchmetrics.functional.text  # noqa: F401
        except ImportError:
            raise missing_extra_error("data.metrics needs torchmetrics", "answers") from None


def score_answers(metric: str, answers: Sequence[str], right: Sequence[str]) -> Tensor:
    """Return the score of each answer, from 0 to 1, (n,) float64.

    exact-match: as SQuAD's script compares words, without case, punctuation and articles. rouge-l: F1 of the longest
    common subsequence of words.
    """
    from torchmetrics.functional.text import rouge_score, squad

    def score(answer: str, target: str) -> float:
        if metric == "rouge-l":
            return float(rouge_score(answer, target, rouge_keys="rougeL")["rougeL_fmeasure"])
        asked: Any = {"answers": {"answer_start": [0], "text": [target]}, "id": "0"}
        return float(squad({"prediction_text": answer, "id": "0"}, asked)["exact_match"]) / 100

    return torch.tensor([score(a, r) for a, r in zip(answers, right, strict=True)], dtype=torch.float64)
