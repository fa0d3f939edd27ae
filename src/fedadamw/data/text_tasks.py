"""Texts as tasks for an engine: predict a text's class, a number, or its next tokens.

Batches are padded on the right to a multiple of 8 tokens. Padding changes no loss: it is masked from attention, or
comes after all tokens that are used.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fedadamw.data.scoring import CLASSIFICATION, REGRESSION, compute_metrics
from fedadamw.data.texts import Texts
from fedadamw.models.text import Form
from fedadamw.task import Batch, Evaluation, Model, copy_to

MULTIPLE = 8


class Padded:
    """Gathers texts by number as padded rows on the device; the texts stay on the CPU."""

    def __init__(self, texts: Texts, *, pad: int, longest: int, device: torch.device) -> None:
        self.tokens, self.marks = torch.from_numpy(texts.tokens), torch.from_numpy(texts.marks)
        self.starts, self.lengths = torch.from_numpy(texts.starts), torch.from_numpy(texts.lengths)
        self.pad, self.longest, self.device = pad, longest, device

    def gather(self, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return token numbers, marks and whether they are real (not padding) of these texts, (n, length) each."""
        lengths = self.lengths[samples]
        length = min(self.longest, -(-max(int(lengths.max()), 1) // MULTIPLE) * MULTIPLE)
        place = torch.arange(length)
        real = place < lengths[:, None]
        at = torch.where(real, self.starts[samples][:, None] + place, 0)
        ids, marks = torch.where(real, self.tokens[at], self.pad).long(), torch.where(real, self.marks[at], 0)
        return copy_to(ids, self.device), copy_to(marks, self.device), copy_to(real, self.device)

    def iter_by_length(self, start: int, stop: int, size: int) -> Iterator[Tensor]:
        """Iterate over the samples from `start` to `stop` in batches of similar length."""
        order = torch.argsort(self.lengths[start:stop], stable=True) + start
        return iter(order.split(size)) if stop > start else iter(())


class TextTask:
    """Cross-entropy of a text's class, or squared error of a number.

    form: the model's inputs. metrics: names from data/scoring.py, the main one first.
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
        """Return the model's inputs for these texts, and their labels (n,)."""
        return self._batch(self.texts, self.labels, samples)

    def _batch(self, texts: Padded, labels: Tensor, samples: Tensor) -> Batch:
        ids, marks, real = texts.gather(samples)
        return (*self.form.inputs(ids, marks, real), copy_to(labels[samples], texts.device))

    def losses(self, model: Model, batch: Batch) -> Tensor:
        """Return the loss of each text, (n,)."""
        *inputs, labels = batch
        return self._losses(self.form.logits(model, inputs), labels)

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.numbers:
            predicted = logits.squeeze(-1).to(torch.promote_types(logits.dtype, torch.float32))
            return F.mse_loss(predicted, labels.to(predicted), reduction="none")
        return F.cross_entropy(logits, labels, reduction="none")

    @property
    def held_out(self) -> int:
        """Number of held-out texts."""
        return len(self.test_labels)

    def outputs(self, model: Model, start: int, stop: int) -> Tensor:
        """Return loss, label and prediction of each held-out text, (stop - start, 3)."""
        results = torch.zeros(stop - start, 3, dtype=torch.float64, device=self.texts.device)
        for samples in self.test_texts.iter_by_length(start, stop, self.test_batch_size):
            *inputs, labels = self._batch(self.test_texts, self.test_labels, samples)
            logits = self.form.logits(model, inputs)
            predicted = logits.squeeze(-1) if self.numbers else logits.argmax(-1)
            columns = (self._losses(logits, labels), labels, predicted)
            results[(samples - start).to(results.device)] = torch.stack([c.double() for c in columns], -1)
        return results

    def logits(self, model: Model, start: int, stop: int) -> Tensor:
        """Return the logits of held-out texts `start` to `stop`, (stop - start, classes), in batches as `outputs`."""
        batches = list(self.test_texts.iter_by_length(start, stop, self.test_batch_size))
        parts = [self.form.logits(model, self._batch(self.test_texts, self.test_labels, b)[:-1]) for b in batches]
        return torch.cat(parts)[torch.argsort(torch.cat(batches)).to(parts[0].device)]

    def score(self, outputs: Tensor) -> Evaluation:
        """Return the mean loss and the metrics."""
        loss, labels, predicted = outputs.cpu().numpy().T
        return Evaluation(float(loss.mean()), compute_metrics(self.metrics, labels, predicted, self.classes))


class LanguageTask:
    """Cross-entropy of the learned tokens: the mean over each text's, then over texts."""

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
        """Return token numbers (n, length), and 1 if a token is learned, (n, length)."""
        ids, marks, _ = self.texts.gather(samples)
        return ids, marks

    def losses(self, model: Model, batch: Batch) -> Tensor:
        """Return the mean loss of each text's learned tokens, (n,)."""
        ids, marks = batch
        loss, learned = self._token_losses(self.form.logits(model, [ids], use_cache=False), ids, marks)
        return loss.sum(-1) / learned.sum(-1).clamp(min=1)

    def _token_losses(self, logits: Tensor, ids: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each learned token but the first, 0 for others, and 1 if learned: (n, length - 1) each."""
        following = ids.roll(-1, 1)  # the last token has no next: its loss is cut off below, which copies no logits
        loss = F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none").view(ids.shape)[:, :-1]
        loss = loss.to(torch.promote_types(loss.dtype, torch.float32))  # also for the counts, which may be large
        learned = marks[:, 1:].to(loss)
        return loss * learned, learned

    def outputs(self, model: Model, start: int, stop: int) -> Tensor:
        """Return loss, number and correct predictions, summed over each text's learned tokens, (stop - start, 3)."""
        results = torch.zeros(stop - start, 3, dtype=torch.float64, device=self.texts.device)
        for samples in self.test_texts.iter_by_length(start, stop, self.test_batch_size):
            ids, marks, _ = self.test_texts.gather(samples)
            logits = self.form.logits(model, [ids], use_cache=False)
            loss, learned = self._token_losses(logits, ids, marks)
            correct = (logits.argmax(-1) == ids.roll(-1, 1))[:, :-1] * learned
            sums = [t.sum(-1).double() for t in (loss, learned, correct)]
            results[(samples - start).to(results.device)] = torch.stack(sums, -1)
        return results

    def score(self, outputs: Tensor) -> Evaluation:
        """Return the mean loss per token, the share of correct predictions, and perplexity."""
        loss, tokens, correct = outputs.sum(0).tolist()
        mean = loss / max(tokens, 1)
        return Evaluation(mean, {"accuracy": correct / max(tokens, 1), "perplexity": math.exp(min(mean, 700.0))})
