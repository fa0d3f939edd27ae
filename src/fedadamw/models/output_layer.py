"""Losses of a language model in chunks of tokens, so that logits of a large vocabulary never exist at once.

Only learned tokens get logits: their hidden states go through the output layer chunk by chunk. The model's own code
computes them (its head, adapters on it, soft caps and scales), with its decoder replaced by the chunk.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils.checkpoint import checkpoint

from fedadamw.task import Model
from fedadamw.vector import at_least_single

CHUNK_BYTES = 2**26  # of logits in float32: smaller ones are computed whole, larger ones in chunks of this size
LOGIT_COPIES = 3  # tensors of the logits' size at once in training: they, their log-softmax, its gradient
EVALUATED_COPIES = 2  # in an evaluation
NO_TOKENS = torch.zeros(0, dtype=torch.long)  # places of logits; for a last one torch may copy the whole layer a text


def chunk_tokens(vocabulary: int) -> int:
    """Return how many tokens' logits are computed at once."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


def is_chunked(tokens: int, vocabulary: int) -> bool:
    """Return whether the logits of so many tokens (padding included) are computed in chunks, if the model allows it."""
    return tokens > chunk_tokens(vocabulary)


class OutputLayer:
    """What a language model does with its decoder's hidden states: from (tokens, width) to (tokens, vocabulary)."""

    def __init__(self, model: Any, decoder: nn.Module, kind: type, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self._model, self._decoder, self._kind = model, decoder, kind  # kind: of what the decoder returns

    @property
    def trains(self) -> bool:
        """Whether it has trainable parameters, of its own or tied to the embeddings'."""
        parts = [part for part in self._model.children() if all(m is not self._decoder for m in part.modules())]
        return any(p.requires_grad for part in parts for p in part.parameters())

    def hidden(self, model: Model, inputs: Mapping[str, object]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return hidden states (n, length, width), and this layer's parameters if clients train it stacked.

        model: the module, or a function that calls it with a stacked client's parameters, which it has only meanwhile.
        """
        of_client = self.trains and not isinstance(model, nn.Module)
        with _captured(self._decoder, lambda: dict(self._own_parameters()) if of_client else {}) as found:
            model(**inputs, use_cache=False, logits_to_keep=NO_TOKENS)
        out, own = found[-1]
        return out.last_hidden_state, own

    def logits(self, hidden: Tensor, own: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the logits (tokens, vocabulary) of hidden states (tokens, width); own: parameters to use instead."""
        inputs = {"input_ids": torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device), "use_cache": False}
        with _replaced(self._decoder, lambda *_, **__: self._kind(last_hidden_state=hidden[None])):
            out = self._model(**inputs) if own is None else functional_call(self._model, dict(own), (), inputs)
        logits: Tensor = out.logits[0]
        return logits

    def losses(self, hidden: Tensor, own: Mapping[str, Tensor], targets: Tensor, learned: Tensor) -> Tensor:
        """Return the loss of each learned token, (n, length), 0 for others.

        hidden, own: as `hidden` gives them. targets: (n, length) the tokens to predict. learned: (n, length) bool.
        """
        if not self.trains:
            losses: Tensor = _OfFrozen.apply(hidden, targets, learned, self)[0]  # type: ignore[no-untyped-call]
        elif own:
            losses = _OfStacked.apply(hidden, targets, learned, self, tuple(own), *own.values())  # type: ignore[no-untyped-call]
        else:
            losses = _checkpointed(self, hidden, targets, learned)
        return losses

    def _own_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield its parameters with their names in the model, also those tied to the embeddings'."""
        decoder = next(name for name, module in self._model.named_modules() if module is self._decoder)
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            if not name.startswith(f"{decoder}."):
                yield name, parameter

    @torch.no_grad()
    def evaluate(self, hidden: Tensor, targets: Tensor, learned: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each learned token, and 1 if it is predicted: (n, length) each, 0 for others."""
        at, rows, wanted = _select(hidden, targets, learned)
        losses, correct = [], []
        for part, of in self.chunks(rows, wanted):
            logits = self.logits(part)
            losses.append(_cross_entropy(logits, of))
            correct.append((logits.argmax(-1) == of).to(losses[-1]))
        return _place(losses, at, targets), _place(correct, at, targets)

    def token_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the loss (tokens,) of hidden states (tokens, width), from their whole logits."""
        return _cross_entropy(self.logits(hidden), targets)

    def chunks(self, *of_tokens: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield tensors (tokens, ...) in parts of as many tokens as may have logits at once."""
        return zip(*(t.split(chunk_tokens(self.vocabulary)) for t in of_tokens), strict=True)


def find_output_layer(model: Any, ids: Tensor, expected: Tensor) -> OutputLayer | str:
    """Return the output layer of `model`, or why its logits can only be computed whole.

    It is tried with a text, ids (1, length), whose logits are `expected`.
    """
    try:
        decoder = _find_decoder(model)
        if "logits_to_keep" not in inspect.signature(model.forward).parameters or decoder is model:
            return "its forward does not separate them from its hidden states"
        with _captured(decoder) as found:
            model(input_ids=ids, use_cache=False, logits_to_keep=NO_TOKENS)
        out, _ = found[-1]
        layer = OutputLayer(model, decoder, type(out), expected.shape[-1])
        logits = layer.logits(out.last_hidden_state[0])
    except Exception as error:  # the model's code may raise anything for a call that it does not expect
        return f"{type(error).__name__}: {error}".splitlines()[0]
    same = logits.shape == expected[0].shape and torch.allclose(logits, expected[0], rtol=1e-3, atol=1e-4)
    return layer if same else "its logits are not a function of its decoder's hidden states"


def _find_decoder(model: Any) -> nn.Module:
    """Return the part of `model` that ends with hidden states; `model` itself if there is none."""
    decoder: nn.Module = model.get_decoder()
    parts = [part for part in model.children() if hasattr(part, "get_input_embeddings")]
    return parts[0] if decoder is model and len(parts) == 1 else decoder


@contextmanager
def _captured(decoder: nn.Module, also: Callable[[], Any] = dict) -> Iterator[list[tuple[Any, Any]]]:
    """A context that collects what the decoder returns, with what `also` gives at that time."""
    found: list[tuple[Any, Any]] = []
    hook = decoder.register_forward_hook(lambda _, __, out: found.append((out, also())))
    try:
        yield found
    finally:
        hook.remove()


@contextmanager
def _replaced(decoder: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    """A context in which `forward` runs instead of the decoder's, which a library may have replaced before."""
    before = vars(decoder).get("forward")
    decoder.forward = forward
    try:
        yield
    finally:
        del decoder.forward
        if before is not None:
            decoder.forward = before


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.to(at_least_single(logits)), targets, reduction="none")


def _select(hidden: Tensor, targets: Tensor, learned: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the places (tokens,) of the learned tokens in the flat batch, their hidden states and their targets."""
    at = learned.flatten().nonzero().squeeze(1)
    return at, hidden.flatten(0, -2)[at], targets.flatten()[at]


def _place(values: Sequence[Tensor], at: Tensor, like: Tensor) -> Tensor:
    """Return the concatenated values at their places in a tensor of the shape of `like`, 0 elsewhere."""
    flat = torch.cat(list(values))
    return flat.new_zeros(like.numel()).index_copy(0, at, flat).view(like.shape)


def _checkpointed(layer: OutputLayer, hidden: Tensor, targets: Tensor, learned: Tensor) -> Tensor:
    """As `OutputLayer.losses`, of a layer that trains: each chunk is computed again in backward."""
    at, rows, wanted = _select(hidden, targets, learned)
    parts = [checkpoint(layer.token_losses, *part, use_reentrant=False) for part in layer.chunks(rows, wanted)]
    return _place(parts, at, targets)


class _OfFrozen(torch.autograd.Function):
    """As `OutputLayer.losses`, of a frozen layer: forward also computes each loss's gradient, so nothing runs twice.

    A token's loss depends on its own hidden state only, so backward multiplies by what arrives for that token.
    """

    @staticmethod
    def forward(hidden: Tensor, targets: Tensor, learned: Tensor, layer: OutputLayer) -> tuple[Tensor, Tensor]:
        at, rows, wanted = _select(hidden.detach(), targets, learned)
        losses, slopes = [], torch.empty_like(rows)
        for part, of, slope in layer.chunks(rows, wanted, slopes):
            with torch.enable_grad():
                own = part.clone().requires_grad_()
                loss = layer.token_losses(own, of)
                slope.copy_(torch.autograd.grad(loss.sum(), own)[0])
            losses.append(loss.detach())
        every = slopes.new_zeros(hidden.shape).flatten(0, -2).index_copy(0, at, slopes).view(hidden.shape)
        return _place(losses, at, targets), every

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, slopes = output
        ctx.mark_non_differentiable(slopes)
        ctx.save_for_backward(slopes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (slopes,) = ctx.saved_tensors
        return slopes * grads[0][..., None].to(slopes), None, None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: Sequence[int | None], hidden: Tensor, targets: Tensor, learned: Tensor, layer: OutputLayer
    ) -> Any:
        """All clients' texts as one batch: a frozen layer is the same for all."""
        every = _clients_first(info.batch_size, in_dims, hidden, targets, learned)
        both = _OfFrozen.apply(*(t.flatten(0, 1) for t in every), layer)  # type: ignore[no-untyped-call]
        return tuple(t.unflatten(0, (info.batch_size, -1)) for t in both), (0, 0)


class _OfStacked(torch.autograd.Function):
    """As `OutputLayer.losses`, of stacked clients whose layers train: each chunk of all is computed again in backward.

    names, own: the layer's parameters, of every client.
    """

    @staticmethod
    def forward(
        hidden: Tensor, targets: Tensor, learned: Tensor, layer: OutputLayer, names: Sequence[str], *own: Tensor
    ) -> Tensor:
        raise AssertionError("only called under vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Saves nothing: autograd differentiates the calls inside the vmap rule."""

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Sequence[int | None],
        hidden: Tensor,
        targets: Tensor,
        learned: Tensor,
        layer: OutputLayer,
        names: Sequence[str],
        *own: Tensor,
    ) -> Any:
        """Learned tokens come first, as many of each client as the one with most has."""
        every = _clients_first(info.batch_size, in_dims, hidden, targets, learned)
        states, wanted, marks = (t.flatten(1, 2) for t in every)
        order = marks.byte().argsort(dim=1, descending=True, stable=True)[:, : int(marks.sum(1).max())]
        rows, wanted = states.gather(1, order[..., None].expand(-1, -1, states.shape[-1])), wanted.gather(1, order)

        def of_client(hidden: Tensor, targets: Tensor, *own: Tensor) -> Tensor:
            return _cross_entropy(layer.logits(hidden, dict(zip(names, own, strict=True))), targets)

        calls = vmap(of_client, in_dims=(0, 0, *in_dims[5:]), randomness="different")
        size = max(1, chunk_tokens(layer.vocabulary) // info.batch_size)
        chunks = zip(rows.split(size, 1), wanted.split(size, 1), strict=True)
        losses = torch.cat([checkpoint(calls, *chunk, *own, use_reentrant=False) for chunk in chunks], 1)
        placed = losses.new_zeros(marks.shape).scatter(1, order, losses)
        return torch.where(marks, placed, 0).unflatten(1, every[2].shape[1:]), 0


def _clients_first(clients: int, in_dims: Sequence[int | None], *tensors: Tensor) -> list[Tensor]:
    """Return the tensors with the client axis first."""
    return [
        t.expand(clients, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(tensors, in_dims, strict=False)
    ]
