"""FedAdamW for your own federated loop: a torch.optim.Optimizer for the client and its server half.

The step is the algorithm's own (directions/), so a loop of yours and the simulator give the same numbers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw as adamw_

from fedadamw.algorithms import fedadamw as algorithm
from fedadamw.blocks import Blocks
from fedadamw.directions.adamw import Moments, adamw, check_adamw, debias
from fedadamw.directions.align import aligned_step
from fedadamw.messages import Broadcast, Upload, check_message
from fedadamw.validation import InputError, check, one_of
from fedadamw.vector import Layout, trainable

ZERO = torch.zeros((), dtype=torch.float64)
BEFORE_A_ROUND: dict[str, Any] = {"share": "vm", "t": 0.0, "lr_sum": 0.0}  # nothing restarts, as in AdamW


class FedAdamW(torch.optim.Optimizer):
    """AdamW on a client of FedAdamW (arXiv 2510.27486); before the first `start_round` it is plain AdamW.

    params: `model.named_parameters()`, or groups of them; names tie parameters to blocks.
    blocks: `Blocks.of(model)`; without it the optimizer is AdamW and nothing else.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        alpha: float = 0.5,
        blocks: Blocks | None = None,
    ) -> None:
        check(float(lr) >= 0, f"lr={lr} must not be negative")
        check_adamw(betas, eps, weight_decay)
        check(alpha >= 0, f"alpha={alpha} must not be negative")
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "alpha": alpha}
        super().__init__(params, settings | BEFORE_A_ROUND)
        self.blocks = blocks

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"blocks": self.blocks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also takes the state of torch.optim.AdamW, whose moments have longer names."""
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in {**self.defaults, **BEFORE_A_ROUND}.items():
                group.setdefault(key, value)
        for own in self.state.values():
            for theirs, ours in (("exp_avg", "m"), ("exp_avg_sq", "v")):
                if theirs in own:
                    own[ours] = own.pop(theirs)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One local step; parameters without a gradient stay as they are, as with torch's optimizers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moves = any(p.grad is not None for group in self.param_groups for p in group["params"])
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            alike: dict[tuple[float, torch.device], list[Tensor]] = {}  # steps so far: what one fused call can move
            for p, steps in zip(parameters, self._counted(parameters), strict=True):
                if _is_plain(p):
                    alike.setdefault((steps, p.device), []).append(p)
                else:
                    self._step_one(p, steps, group)
            for (steps, _), together in alike.items():
                self._step_fused(together, steps, group)
            group["lr_sum"] += float(group["lr"]) if moves else 0.0
        return loss

    def _counted(self, parameters: Sequence[Tensor]) -> list[float]:
        """One more step of each parameter; how many they are."""
        for p in parameters:
            assert p.grad is not None
            if p.grad.is_sparse:
                raise InputError("FedAdamW takes dense gradients; use nn.Embedding(sparse=False)")
            if not self.state[p]:
                self.state[p] = {"step": ZERO.clone(), "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
        if not parameters:
            return []
        steps = torch.stack([self.state[p]["step"].double().cpu() for p in parameters]) + 1
        for p, step in zip(parameters, steps.unbind(), strict=True):  # a loaded one may be float32, and shared
            self.state[p]["step"] = step
        return list(steps.tolist())

    def _step_fused(self, parameters: list[Tensor], steps: float, group: dict[str, Any]) -> None:
        """`_step_one` for many parameters by torch's fused AdamW, and one more pass for the global direction.

        Its kernel debiases m and v by the number of steps of this round. Where they are older, the step and eps are
        scaled so that the same comes out.
        """
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        k = torch.tensor(steps, dtype=torch.float64)
        m_steps, v_steps = self._ages(k, group)
        of_v = float((debias(beta2, v_steps) / debias(beta2, k)).sqrt())
        scale = of_v * float(debias(beta1, k) / debias(beta1, m_steps))
        states = [self.state[p] for p in parameters]
        before = torch.full((len(parameters),), steps - 1, device=parameters[0].device).unbind()  # the call adds one
        adamw_(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["m"] for state in states],
            [state["v"] for state in states],
            [],
            list(before),
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr * scale,
            weight_decay=group["weight_decay"] / scale,
            eps=group["eps"] * of_v,
            maximize=False,
        )
        moved = [(p, state["delta"]) for p, state in zip(parameters, states, strict=True) if "delta" in state]
        if moved and group["alpha"]:
            torch._foreach_add_([p for p, _ in moved], [d for _, d in moved], alpha=-lr * group["alpha"])

    def _ages(self, steps: Tensor, group: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """How many gradients m and v have seen after `steps` of this round."""
        how_m, how_v = (0.0 if how == "restart" else group["t"] for how in algorithm.SHARES[group["share"]])
        return steps + how_m, steps + how_v

    def _step_one(self, p: Tensor, steps: float, group: dict[str, Any]) -> None:
        assert p.grad is not None
        state = self.state[p]
        m_steps, v_steps = self._ages(torch.tensor(steps, dtype=torch.float64), group)
        moments = Moments(state["m"], state["v"])
        u, moments = adamw(p.grad, moments, m_steps, v_steps, betas=group["betas"], eps=group["eps"])
        delta = state.get("delta", p.new_zeros(()))
        decay, alpha = group["weight_decay"], group["alpha"]
        p.copy_(aligned_step(p, u, delta, group["lr"], alpha=alpha, weight_decay=decay))
        state["m"], state["v"] = moments

    @torch.no_grad()
    def start_round(self, down: Broadcast) -> None:
        """Load x, Delta_G and t, expand v_bar, reset m; ValueError where `down` is for another model."""
        blocks = self._blocks()
        check_message(down, blocks, down.share, "the broadcast")
        parameters = self._parameters()
        server = down.state
        how_m, how_v = algorithm.SHARES[down.share]
        m = algorithm.unpack(server.m, how_m, blocks, like=server.x)
        v = algorithm.unpack(server.v, how_v, blocks, like=server.x)
        fields = {"x": server.x, "delta": server.delta, "m": m, "v": v}
        views = {field: blocks.layout.views(vector) for field, vector in fields.items()}
        for name, p in parameters.items():
            p.copy_(views["x"][name])
            own = {field: view[name].to(p, copy=True) for field, view in views.items()}
            self.state[p] = {"step": ZERO.clone(), **own}
        for group in self.param_groups:
            group.update(share=down.share, t=float(server.t), lr_sum=0.0)

    @torch.no_grad()
    def finish_round(self) -> Upload:
        """What goes to the server; the model stays where training left it."""
        blocks = self._blocks()
        parameters = self._parameters()
        states = {name: self.state[p] for name, p in parameters.items()}
        if not all("x" in state for state in states.values()):
            raise RuntimeError("finish_round before start_round: nothing was received that could be answered")
        steps = max(float(state["step"]) for state in states.values())
        if steps == 0:
            raise RuntimeError("finish_round without a step since start_round")
        share = self.param_groups[0]["share"]
        how_m, how_v = algorithm.SHARES[share]
        delta = blocks.layout.flatten({name: p - states[name]["x"] for name, p in parameters.items()})
        m = blocks.layout.flatten({name: state["m"] for name, state in states.items()})
        v = blocks.layout.flatten({name: state["v"] for name, state in states.items()})
        up = algorithm.Up(
            delta,
            algorithm.pack(m, how_m, blocks).clone(),
            algorithm.pack(v, how_v, blocks),
            delta.new_full((1,), steps, dtype=_at_least_single(delta)),
        )
        rates = {n: g["lr_sum"] / steps for g in self.param_groups for n in g["param_names"]}
        lr = torch.tensor([rates[name] for name in blocks.layout.names], dtype=_at_least_single(delta))
        return Upload(blocks.layout, blocks.fingerprint, share, up, lr)

    def _blocks(self) -> Blocks:
        if self.blocks is None:
            raise RuntimeError("rounds need blocks: FedAdamW(..., blocks=fedadamw.Blocks.of(model))")
        return self.blocks

    def _parameters(self) -> dict[str, Tensor]:
        """The parameters of the blocks' layout, by name and in its order."""
        layout = self._blocks().layout
        named = dict(self._named_parameters())
        own = {name: named[name] for name in layout.names if name in named}
        extra = {name: p for name, p in named.items() if p.requires_grad and name not in own}
        problem = layout.difference(Layout.named(own | extra))
        if problem:
            raise InputError(f"the optimizer's parameters are not those of its blocks: {problem}")
        return own

    def _named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        for group in self.param_groups:
            if "param_names" not in group:
                raise InputError("pass model.named_parameters(), not model.parameters(): blocks go by names")
            yield from zip(group["param_names"], group["params"], strict=True)


class Server:
    """The server's half: x, Delta_G, v_bar and t, moved by the clients' uploads.

    share: `mean-v` (the paper's), or one of the ablations `none`, `m`, `v`, `vm`.
    """

    def __init__(self, model: nn.Module, blocks: Blocks | None = None, share: str = "mean-v") -> None:
        one_of("share", share, algorithm.SHARES)
        self.blocks = Blocks.of(model) if blocks is None else blocks
        problem = self.blocks.layout.difference(Layout.of(model))
        if problem:
            raise InputError(f"the blocks are not this model's: {problem}")
        self.share = share
        self._algorithm = algorithm.FedAdamW(blocks=self.blocks, share=share)
        x = self.blocks.layout.flatten(trainable(model))
        self._state = self._algorithm.server_init(x.to(_at_least_single(x)))

    def broadcast(self) -> Broadcast:
        """What every client of the next round starts from; `save` it, and `restore` brings the server back."""
        return Broadcast(self.blocks.layout, self.blocks.fingerprint, self.share, self._state)

    def restore(self, down: Broadcast) -> None:
        """Go on from a saved broadcast; ValueError where it is for another model."""
        check_message(down, self.blocks, self.share, "the broadcast", self._state.x.dtype)
        self._state = algorithm.Server(*(t.to(self._state.x) for t in down.state))

    @torch.no_grad()
    def load_into(self, model: nn.Module) -> None:
        """Copy the global model into `model`, to evaluate or save it."""
        problem = self.blocks.layout.difference(Layout.of(model))
        if problem:
            raise InputError(f"the model is another one: {problem}")
        views = self.blocks.layout.views(self._state.x)
        for name, p in trainable(model).items():
            p.copy_(views[name])

    def update(
        self, uploads: Iterable[Upload], weights: Sequence[float] | None = None, lr: float | None = None
    ) -> None:
        """Move to the weighted mean of `uploads`; a bad upload raises ValueError and changes nothing.

        weights: one an upload, uniform by default. lr: the round's; by default the mean the optimizers used.
        """
        self._move(list(uploads), weights, lr)  # a generator trains its clients here, and needs gradients

    @torch.no_grad()
    def _move(self, ups: Sequence[Upload], weights: Sequence[float] | None, lr: float | None) -> None:
        shares = _normalised(weights, len(ups))
        for number, up in enumerate(ups):
            check_message(up, self.blocks, self.share, f"upload {number}", self._state.x.dtype)
        x = self._state.x
        fields = zip(*(up.state for up in ups), strict=True)
        mean = algorithm.Up(*(_mean([t.to(x) for t in field], shares) for field in fields))
        check(lr is None or lr > 0, f"lr={lr} must be above 0 to divide by")
        rate = self._spread(_mean([up.lr.to(x) for up in ups], shares)) if lr is None else x.new_tensor(lr)
        rate = rate.masked_fill(rate == 0, float("inf"))  # what did not move has no direction
        self._state = self._algorithm.server_update(self._state, mean, rate, x.new_tensor(1.0))

    def _spread(self, rates: Tensor) -> Tensor:
        """A learning rate a parameter (parameters,) as one a coordinate (d,), or () where all are the same."""
        if bool((rates == rates[0]).all()):
            return rates[0]
        return self.blocks.layout.spread(rates)


def _is_plain(p: Tensor) -> bool:
    """Whether torch's fused kernels take this parameter and its gradient."""
    assert p.grad is not None
    fits = p.is_contiguous() and p.grad.is_contiguous() and p.grad.dtype == p.dtype
    return fits and p.is_floating_point() and p.device.type in ("cpu", "cuda")


def _at_least_single(t: Tensor) -> torch.dtype:
    """A dtype for what adds up over rounds: half precision would lose small steps, and counts above 256."""
    return torch.promote_types(t.dtype, torch.float32)


def _normalised(weights: Sequence[float] | None, count: int) -> list[float]:
    check(count > 0, "no uploads: at least one is needed")
    given = [1.0] * count if weights is None else [float(w) for w in weights]
    check(len(given) == count, f"{len(given)} weights for {count} uploads")
    check(all(0 <= w < float("inf") for w in given) and sum(given) > 0, f"weights={given}: not negative, not all 0")
    return [w / sum(given) for w in given]


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    total = torch.zeros_like(tensors[0])
    for t, share in zip(tensors, shares, strict=True):
        total.add_(t, alpha=share)
    return total
