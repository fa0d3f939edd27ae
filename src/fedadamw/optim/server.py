"""FedAdamW's server for other federated loops; the client's optimizer is in optimizer.py."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fedadamw.algorithms import fedadamw as algorithm
from fedadamw.algorithms.counter import find_q, with_q
from fedadamw.algorithms.outer import OuterStep
from fedadamw.blocks.blocks import Blocks
from fedadamw.optim.messages import Broadcast, Upload, check_message
from fedadamw.validation import InputError, check, check_one_of, shorten
from fedadamw.vector import Layout, at_least_single, trainable


class Server:
    """FedAdamW's server: x (d,), Delta_G (d,), v_bar (B,) and t, updated by the clients' uploads.

    model: gives the initial x and the layout; it is not changed. blocks: `Blocks.of(model)` by default.
    share: the moments that survive a round: `mean-v` (the paper), or the ablations `none`, `m`, `v`, `vm`.
    memory: gradients that these count for at most; None: all (the paper). betas: the clients', for it, and for t if
    uploads are of unequal numbers of steps.
    outer: the server's step in place of adding the clients' mean: `OuterStep()` is DiLoCo's.

    For a half-precision model, the server's state is float32. Raises InputError if the blocks are another model's or
    the share is unknown, or the memory negative.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Blocks | None = None,
        share: str = "mean-v",
        memory: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        outer: OuterStep | None = None,
    ) -> None:
        check_one_of("share", share, algorithm.SHARES)
        step = outer is None or isinstance(outer, OuterStep)
        check(step, f"outer={shorten(outer)}: give an OuterStep, such as fedadamw.OuterStep(lr=0.7)")
        self.blocks = Blocks.of(model) if blocks is None else blocks
        problem = self.blocks.layout.difference(Layout.of(model))
        if problem:
            raise InputError(f"the blocks are not this model's: {problem}")
        self.share = share
        self._algorithm = algorithm.FedAdamW(blocks=self.blocks, share=share, memory=memory, betas=betas)
        x = self.blocks.layout.flatten(trainable(model))
        self._state = self._algorithm.server_init(x.to(at_least_single(x)))
        self._outer = outer
        self._momentum = None if outer is None else torch.zeros_like(self._state.x)  # of the outer step

    def broadcast(self) -> Broadcast:
        """Return the message that every client of the next round starts from.

        It is also the server's whole state, except for the momentum of an outer step: see `snapshot`.
        """
        return Broadcast(self.blocks.layout, self.blocks.fingerprint, self.share, self._state)

    def snapshot(self) -> Broadcast:
        """Return what `restore` needs: the broadcast, and the momentum (d,) of the outer step if there is one."""
        return replace(self.broadcast(), momentum=self._momentum)

    def restore(self, down: Broadcast) -> None:
        """Resume from a saved snapshot; raises InputError (a ValueError) if it is for another model.

        Without an outer step, a saved broadcast does as well.
        """
        check_message(down, self.blocks, self.share, "the broadcast", self._state.x.dtype)
        has, needs = down.momentum is not None, self._outer is not None
        check(has or not needs, "the broadcast has no momentum for the outer step: save server.snapshot()")
        check(needs or not has, "the broadcast is of a server with an outer step: Server(..., outer=OuterStep(...))")
        self._state = algorithm.Server(*(t.to(self._state.x) for t in down.state))
        self._momentum = None if down.momentum is None else down.momentum.to(self._state.x)

    @torch.no_grad()
    def load_into(self, model: nn.Module) -> None:
        """Copy the global model into `model`, to evaluate or save it; raises InputError if it is another model."""
        problem = self.blocks.layout.difference(Layout.of(model))
        if problem:
            raise InputError(f"the model is another one: {problem}")
        views = self.blocks.layout.views(self._state.x)
        for name, p in trainable(model).items():
            p.copy_(views[name])

    def update(
        self, uploads: Iterable[Upload], weights: Sequence[float] | None = None, lr: float | None = None
    ) -> None:
        """Apply the weighted mean of `uploads`; for a bad upload it raises InputError and changes nothing.

        weights: one per upload, not negative, normalised; uniform by default.
        lr: the round's learning rate, above 0, by which Delta_G is divided; by default the optimizers' mean.
        """
        self._apply(list(uploads), weights, lr)  # outside no_grad: a generator may train its clients here

    @torch.no_grad()
    def _apply(self, ups: Sequence[Upload], weights: Sequence[float] | None, lr: float | None) -> None:
        shares = _normalise(weights, len(ups))
        for number, up in enumerate(ups):
            check_message(up, self.blocks, self.share, f"upload {number}", self._state.x.dtype)
        x = self._state.x
        fields = zip(*(up.state for up in ups), strict=True)
        mean = algorithm.Up(*(_mean([t.to(x) for t in field], shares) for field in fields))
        check(lr is None or lr > 0, f"lr={lr} must be above 0 to divide by")
        rate = self._expand_rates(_mean([up.lr.to(x) for up in ups], shares)) if lr is None else x.new_tensor(lr)
        rate = rate.masked_fill(rate == 0, float("inf"))  # Delta_G is 0 for parameters whose lr is 0
        after = self._update_state(mean, [up.state.k.to(x) for up in ups], shares, rate)
        if self._outer is not None and self._momentum is not None:
            x, self._momentum = self._outer.take(x, self._momentum, mean.delta)
            after = after._replace(x=x)
        self._state = after

    def _update_state(
        self, mean: algorithm.Up, steps: Sequence[Tensor], shares: Sequence[float], rate: Tensor
    ) -> algorithm.Server:
        """Return the state after a round of clients that took `steps` (1,) each, from their mean upload."""
        state, one = self._state, self._state.x.new_tensor(1.0)
        exact = replace(self._algorithm, unequal_steps=True)
        equal = len(state.t) == 1 and all(torch.equal(k, steps[0]) for k in steps)
        if equal or not exact.carried:
            return self._algorithm.server_update(state, mean, rate, one)
        q = _mean([find_q(state.t + k, exact.carried) for k in steps], shares)
        return exact.server_update(state, with_q(mean, q), rate, one)

    def _expand_rates(self, rates: Tensor) -> Tensor:
        """Expand learning rates (parameters,) to coordinates (d,); () if all are equal."""
        if bool((rates == rates[0]).all()):
            return rates[0]
        return self.blocks.layout.expand(rates)


def _normalise(weights: Sequence[float] | None, count: int) -> list[float]:
    check(count > 0, "no uploads: at least one is needed")
    values = [1.0] * count if weights is None else [float(w) for w in weights]
    check(len(values) == count, f"{len(values)} weights for {count} uploads")
    check(
        all(0 <= w < float("inf") for w in values) and sum(values) > 0,
        f"weights={values}: must not be negative, nor all 0",
    )
    return [w / sum(values) for w in values]


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    total = torch.zeros_like(tensors[0])
    for t, share in zip(tensors, shares, strict=True):
        total.add_(t, alpha=share)
    return total
