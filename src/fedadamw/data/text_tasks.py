"""Texts as tasks for an engine: predict a text's class, a number, or its next tokens.

Batches are padded on the right to a multiple of 8 tokens. Padding changes no loss: it is masked from attention, or
comes after all tokens that are used.
"""

import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fedadamw.data.packing import pack
from fedadamw.data.scoring import CLASSIFICATION, REGRESSION, compute_metrics
from fedadamw.data.sums import Classes, Numbers, Pooled, Tokens, score_tokens
from fedadamw.data.texts import Texts
from fedadamw.models.output_layer import OutputLayer, is_chunked
from fedadamw.models.text import Form
from fedadamw.task import Batch, Evaluation, Model, copy_to
from fedadamw.vector import at_least_single

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

    def iter_by_length(self, samples: Tensor, size: int) -> Iterator[Tensor]:
        """Iterate over the places of `samples` (n,) in batches of samples of similar length."""
        order = torch.argsort(self.lengths[samples], stable=True)
        return iter(order.split(size)) if len(samples) else iter(())


class TextTask(Pooled):
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
        centre = sum(train.edges) / len(train.edges) if train.edges else 0.0
        self.kind = Numbers(self.metrics, centre) if self.numbers else Classes(self.metrics, self.classes)
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
        return F.cross_entropy(logits.to(at_least_single(logits)), labels, reduction="none")

    @property
    def held_out(self) -> int:
        """Number of held-out texts."""
        return len(self.test_labels)

    def outputs(self, model: Model, start: int, stop: int) -> Tensor:
        """Return loss, label and prediction of each held-out text, (stop - start, 3)."""
        return self._predict(model, self.test_texts, self.test_labels, torch.arange(start, stop))

    def outputs_of(self, model: Model, samples: Tensor) -> Tensor:
        """Return the same of training texts, (n, 3)."""
        return self._predict(model, self.texts, self.labels, samples)

    def _predict(self, model: Model, texts: Padded, of_texts: Tensor, samples: Tensor) -> Tensor:
        """Return loss, label and prediction of these texts, whose labels are `of_texts`, (n, 3)."""
        results = torch.zeros(len(samples), 3, dtype=torch.float64, device=texts.device)
        for places in texts.iter_by_length(samples, self.test_batch_size):
            *inputs, labels = self._batch(texts, of_texts, samples[places])
            logits = self.form.logits(model, inputs)
            predicted = logits.squeeze(-1) if self.numbers else logits.argmax(-1)
            columns = (self._losses(logits, labels), labels, predicted)
            results[places.to(results.device)] = torch.stack([c.double() for c in columns], -1)
        return results

    def logits(self, model: Model, start: int, stop: int) -> Tensor:
        """Return the logits of held-out texts `start` to `stop`, (stop - start, classes), in batches as `outputs`."""
        batches = list(self.test_texts.iter_by_length(torch.arange(start, stop), self.test_batch_size))
        of_batches = (self._batch(self.test_texts, self.test_labels, places + start) for places in batches)
        parts = [self.form.logits(model, batch[:-1]) for batch in of_batches]
        return torch.cat(parts)[torch.argsort(torch.cat(batches)).to(parts[0].device)]

    def score(self, outputs: Tensor) -> Evaluation:
        """Return the mean loss and the metrics."""
        loss, labels, predicted = outputs.cpu().numpy().T
        return Evaluation(float(loss.mean()), compute_metrics(self.metrics, labels, predicted, self.classes))


class LanguageTask(Pooled):
    """Cross-entropy of the learned tokens: the mean over each text's, then over texts.

    packing: several short texts go through the model in one row.
    """

    def __init__(
        self,
        train: Texts,
        test: Texts,
        form: Form,
        *,
        device: torch.device,
        test_batch_size: int = 20,
        packing: bool = False,
    ) -> None:
        self.form, self.test_batch_size, self.packing = form, test_batch_size, packing
        self.kind = Tokens(form.max_length)
        self.lengths = torch.from_numpy(train.lengths)
        self.resident = device.type == "cpu"  # else batches are padded on the CPU, ahead of the steps
        self.texts, self.test_texts = (
            Padded(texts, pad=form.pad, longest=form.max_length, device=device) for texts in (train, test)
        )
        self.held_out = len(test)
        self._warned = False

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return no random numbers: texts are not augmented."""
        return torch.empty(count, 0)

    def batch(self, samples: Tensor, drawn: Tensor) -> Batch:
        """Return token numbers (n, length), and 1 if a token is learned, (n, length).

        With packing also the texts' lengths, (n,) on the CPU, where they are packed.
        """
        ids, marks, _ = self.texts.gather(samples)
        lengths = (self.texts.lengths[samples.cpu()].clamp(max=ids.shape[1]),) if self.packing else ()
        return ids, marks, *lengths

    def losses(self, model: Model, batch: Batch) -> Tensor:
        """Return the mean loss of each text's learned tokens, (n,)."""
        ids, marks, *lengths = batch
        if lengths:
            losses = self._packed_losses(model, ids, marks, lengths[0])
        else:
            losses = self._token_losses(model, ids, *_look_ahead(ids, marks))
        loss, learned = _keep_learned(losses, marks)
        return loss.sum(-1) / learned.sum(-1).clamp(min=1)

    def _packed_losses(self, model: Model, ids: Tensor, marks: Tensor, lengths: Tensor) -> Tensor:
        """As `_token_losses`, (n, length), of texts that share rows."""
        packed = pack(lengths, ids.shape[1], ids.device)
        following, learned = (packed.take(t) for t in _look_ahead(ids, marks))
        settings = {"position_ids": packed.positions}
        if self.form.masks_rows and not isinstance(model, nn.Module):  # stacked: transformers' own masks do not stack
            settings["attention_mask"] = packed.mask
        losses = self._token_losses(model, packed.take(ids, self.form.pad), following, learned, **settings)
        return packed.put_back(losses, len(ids))

    def _token_losses(
        self, model: Model, ids: Tensor, following: Tensor, learned: Tensor, **settings: Tensor
    ) -> Tensor:
        """Return the loss of each token's `following` one, (n, length); of those not learned, any number."""
        if layer := self._find_layer(ids):
            return layer.losses(*layer.hidden(model, {"input_ids": ids, **settings}), following, learned.bool())
        return self._whole_losses(self.form.logits(model, [ids], use_cache=False, **settings), following)

    def _whole_losses(self, logits: Tensor, following: Tensor) -> Tensor:
        self._warn_if_large(following.numel(), logits.shape[-1])
        if not torch.is_autocast_enabled(logits.device.type):
            logits = logits.to(at_least_single(logits))
        return F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="none").view(following.shape)

    def _find_layer(self, ids: Tensor) -> OutputLayer | None:
        """Return the output layer to compute the losses of these texts in chunks; None: their logits are whole."""
        layer = self.form.output
        return None if isinstance(layer, str) or not is_chunked(ids.numel(), layer.vocabulary) else layer

    def _warn_if_large(self, tokens: int, vocabulary: int) -> None:
        why = self.form.output
        if isinstance(why, str) and why and not self._warned and is_chunked(tokens, vocabulary):
            self._warned = True
            size = f"{tokens:,} x {vocabulary:,}"
            warnings.warn(f"logits of {size} numbers are computed at once, not in chunks: {why}", stacklevel=2)

    def outputs(self, model: Model, start: int, stop: int) -> Tensor:
        """Return loss, number and correct predictions, summed over each text's learned tokens, (stop - start, 3)."""
        return self._add_tokens(model, self.test_texts, torch.arange(start, stop))

    def outputs_of(self, model: Model, samples: Tensor) -> Tensor:
        """Return the same of training texts, (n, 3)."""
        return self._add_tokens(model, self.texts, samples)

    def _add_tokens(self, model: Model, texts: Padded, samples: Tensor) -> Tensor:
        """Return loss, number and correct predictions, summed over each text's learned tokens, (n, 3)."""
        results = torch.zeros(len(samples), 3, dtype=torch.float64, device=texts.device)
        for places in texts.iter_by_length(samples, self.test_batch_size):
            ids, marks, _ = texts.gather(samples[places])
            loss, correct = self._evaluate(model, ids, *_look_ahead(ids, marks))
            loss, learned = _keep_learned(loss, marks)
            sums = [t.sum(-1).double() for t in (loss, learned, correct[:, :-1] * learned)]
            results[places.to(results.device)] = torch.stack(sums, -1)
        return results

    def _evaluate(self, model: Model, ids: Tensor, following: Tensor, learned: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each token's `following` one, and whether it is predicted, (n, length) each."""
        if layer := self._find_layer(ids):
            return layer.evaluate(layer.hidden(model, {"input_ids": ids})[0], following, learned.bool())
        logits = self.form.logits(model, [ids], use_cache=False)
        return self._whole_losses(logits, following), logits.argmax(-1) == following

    def score(self, outputs: Tensor) -> Evaluation:
        """Return the mean loss per token, the share of correct predictions, and perplexity."""
        return score_tokens(*outputs.sum(0).tolist())


def _look_ahead(ids: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
    """Return each token's next one, and 1 if that is learned, (n, length) each; the last has no next: 0."""
    learned = torch.cat([marks[:, 1:], torch.zeros_like(marks[:, :1])], 1)
    return ids.roll(-1, 1), learned


def _keep_learned(loss: Tensor, marks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each learned token but the first, 0 for others, and 1 if learned: (n, length - 1) each."""
    loss = loss[:, :-1].to(at_least_single(loss))  # also for the counts, which may be large
    learned = marks[:, 1:].to(loss)
    return loss * learned, learned
