"""Texts as tasks for an engine: predict a text's class, a number, or its next tokens.

Batches are padded on the right to a multiple of 8 tokens. Padding changes no loss: it is masked from attention, or
comes after all tokens that are used.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fedadamw.data.scoring import CLASSIFICATION, REGRESSION, scores
from fedadamw.data.texts import Texts
from fedadamw.models.text import Form
from fedadamw.task import Batch, Evaluation, Model

MULTIPLE = 8


class Padded:
    """Texts on the CPU, by number, as padded rows on the device."""

    def __init__(self, texts: Texts, *, pad: int, longest: int, device: torch.device) -> None:
        self.tokens, self.marks = torch.from_numpy(texts.tokens), torch.from_numpy(texts.marks)
        self.starts, self.lengths = torch.from_numpy(texts.starts), torch.from_numpy(texts.lengths)
        self.pad, self.longest, self.device = pad, longest, device

    def rows(self, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Token numbers, marks and whether they are real (not padding) of these texts, (n, length) each."""
        lengths = self.lengths[samples]
        length = min(self.longest, -(-max(int(lengths.max()), 1) // MULTIPLE) * MULTIPLE)
        place = torch.arange(length)
        real = place < lengths[:, None]
        at = torch.where(real, self.starts[samples][:, None] + place, 0)
        ids, marks = torch.where(real, self.tokens[at], self.pad).long(), torch.where(real, self.marks[at], 0)
        return self._sent(ids), self._sent(marks), self._sent(real)

    def _sent(self, t: Tensor) -> Tensor:
        pinned = t.pin_memory() if self.device.type == "cuda" else t
        return pinned.to(self.device, non_blocking=True)

    def by_length(self, start: int, stop: int, size: int) -> Iterator[Tensor]:
        """The samples from `start` to `stop` in batches of texts of much the same length."""
        order = torch.argsort(self.lengths[start:stop], stable=True) + start
        return iter(order.split(size)) if stop > start else iter(())


class TextTask:
    """Cross-entropy of a text's class, or the squared error of a number that is predicted of it.

    form: what the model takes. metrics: names from data/scoring.py, the main one first.
    """

    def __init__(
        self,
        train: Texts,
        test: Texts,
        form: Form,
        *,
        device: torch.device,
        metrics: tuple[str, ...] | None = None,
        test_batch_size: int = 100,
    ) -> None:
        self.form, self.test_batch_size = form, test_batch_size
        self.numbers, self.classes = train.targets is not None, len(train.classes)
        self.lengths = torch.from_numpy(train.lengths)
        self.metrics = metrics or (REGRESSION if self.numbers else CLASSIFICATION)
        self.resident = device.type == "cpu"  # else batches are padded on the CPU, ahead of the steps
        self.texts, self.test_texts = (
            Padded(texts, pad=form.pad, longest=form.max_length, device=device) for texts in (train, test)
        )
        self.labels, self.test_labels = (
            torch.from_numpy(texts.labels if texts.targets is None else texts.targets) for texts in (train, test)
        )

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return no random numbers: texts are not augmented."""
        return torch.empty(count, 0)

    def batch(self, samples: Tensor, drawn: Tensor) -> Batch:
        """What the model takes of these texts, and their labels (n,)."""
        return self._batch(self.texts, self.labels, samples)

    def _batch(self, texts: Padded, labels: Tensor, samples: Tensor) -> Batch:
        ids, marks, real = texts.rows(samples)
        return (*self.form.inputs(ids, marks, real), labels[samples].to(ids.device))

    def losses(self, model: Model, batch: Batch) -> Tensor:
        """The loss of each text, (n,)."""
        *inputs, labels = batch
        return self._losses(self.form.logits(model, inputs), labels)

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.numbers:
            predicted = logits.squeeze(-1).to(torch.promote_types(logits.dtype, torch.float32))
            return F.mse_loss(predicted, labels.to(predicted), reduction="none")
        return F.cross_entropy(logits, labels, reduction="none")

    @property
    def held_out(self) -> int:
        """How many texts are held out."""
        return len(self.test_labels)

    def outputs(self, model: Model, start: int, stop: int) -> Tensor:
        """Loss, label and prediction of each held-out text, (stop - start, 3)."""
        found = torch.zeros(stop - start, 3, dtype=torch.float64, device=self.texts.device)
        for samples in self.test_texts.by_length(start, stop, self.test_batch_size):
            *inputs, labels = self._batch(self.test_texts, self.test_labels, samples)
            logits = self.form.logits(model, inputs)
            predicted = logits.squeeze(-1) if self.numbers else logits.argmax(-1)
            columns = (self._losses(logits, labels), labels, predicted)
            found[(samples - start).to(found.device)] = torch.stack([c.double() for c in columns], -1)
        return found

    def score(self, outputs: Tensor) -> Evaluation:
        """Mean loss and the metrics."""
        loss, labels, predicted = outputs.cpu().numpy().T
        return Evaluation(float(loss.mean()), scores(self.metrics, labels, predicted, self.classes))


class LanguageTask:
    """Cross-entropy of a text's next tokens, where they are to be learned: the mean over a text's, then over texts."""

    def __init__(
        self, train: Texts, test: Texts, form: Form, *, device: torch.device, test_batch_size: int = 20
    ) -> None:
        self.form, self.test_batch_size = form, test_batch_size
        self.lengths = torch.from_numpy(train.lengths)
        self.resident = device.type == "cpu"  # else batches are padded on the CPU, ahead of the steps
        self.texts, self.test_texts = (
            Padded(texts, pad=form.pad, longest=form.max_length, device=device) for texts in (train, test)
        )
        self.held_out = len(test)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return no random numbers: texts are not augmented."""
        return torch.empty(count, 0)

    def batch(self, samples: Tensor, drawn: Tensor) -> Batch:
        """Token numbers (n, length) and 1 where a token is to be learned, (n, length)."""
        ids, marks, _ = self.texts.rows(samples)
        return ids, marks

    def losses(self, model: Model, batch: Batch) -> Tensor:
        """The mean loss of each text's learned tokens, (n,)."""
        ids, marks = batch
        loss, learned, _ = self._tokens(model, ids, marks)
        return loss.sum(-1) / learned.sum(-1).clamp(min=1)

    def _tokens(self, model: Model, ids: Tensor, marks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, whether it counts, and whether the likeliest is right, of each token but the first: (n, length - 1)."""
        logits = self.form.logits(model, [ids], use_cache=False)
        following = ids.roll(-1, 1)  # the last token is followed by none: cutting off its loss copies no logits
        loss = F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none").view(ids.shape)[:, :-1]
        loss = loss.to(torch.promote_types(loss.dtype, torch.float32))  # as counts of many tokens need it, too
        learned = marks[:, 1:].to(loss)
        return loss * learned, learned, (logits.argmax(-1) == following)[:, :-1] * learned

    def outputs(self, model: Model, start: int, stop: int) -> Tensor:
        """Sums over each held-out text's learned tokens of loss, their number and the right ones, (stop - start, 3)."""
        found = torch.zeros(stop - start, 3, dtype=torch.float64, device=self.texts.device)
        for samples in self.test_texts.by_length(start, stop, self.test_batch_size):
            ids, marks, _ = self.test_texts.rows(samples)
            sums = [t.sum(-1).double() for t in self._tokens(model, ids, marks)]
            found[(samples - start).to(found.device)] = torch.stack(sums, -1)
        return found

    def score(self, outputs: Tensor) -> Evaluation:
        """Mean loss a token, the share of tokens that are the likeliest, and perplexity."""
        loss, tokens, right = outputs.sum(0).tolist()
        mean = loss / max(tokens, 1)
        return Evaluation(mean, {"accuracy": right / max(tokens, 1), "perplexity": math.exp(min(mean, 700.0))})
