"""FedAdamW for other federated loops: a torch.optim.Optimizer for the client; the server is in server.py.

Its steps call the same functions as the simulator (directions/), so both give the same numbers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.adamw import adamw as adamw_

from fedadamw.algorithms import fedadamw as algorithm
from fedadamw.blocks.blocks import Blocks
from fedadamw.directions.adamw import Moments, adamw, check_adamw, debias
from fedadamw.directions.align import take_aligned_step
from fedadamw.optim.messages import Broadcast, Upload, check_message
from fedadamw.validation import InputError, check
from fedadamw.vector import Layout, at_least_single

ZERO = torch.zeros((), dtype=torch.float64)
BEFORE_A_ROUND: dict[str, Any] = {"share": "vm", "t": 0.0, "lr_sum": 0.0}  # no moment restarts, as in AdamW
ADAMW_STATE, FEDADAMW_STATE = {"step", "exp_avg", "exp_avg_sq"}, {"step", "m", "v"}  # keys in a parameter's state
ROUND_STATE = {"x", "delta"}  # further keys of FedAdamW within a round
UNSUPPORTED = ("maximize", "amsgrad", "differentiable")  # settings of torch's AdamW that change its steps


class FedAdamW(torch.optim.Optimizer):
    """AdamW on a client of FedAdamW (arXiv 2510.27486); before the first `start_round` it is plain AdamW.

    A round is `start_round(broadcast)`, steps, `finish_round()`. One step of a parameter y with gradient g, in its k-th
    step of the round, with t steps in all rounds before:

        m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g*g
        u = m/(1 - beta1^k) / (sqrt(v/(1 - beta2^(t+k))) + eps)
        y = y - lr (u + alpha Delta_G + weight_decay y)

    Deviations: the paper prints - weight_decay y inside the bracket, which would grow the weights; decay is meant.
    The authors' code debiases m and v by one global count; here m, which restarts every round, is debiased by k.

    params: `model.named_parameters()`, or groups of them; rounds find the blocks of a parameter by its name.
    lr: learning rate, not negative (default 1e-3); schedulers may change it within a round.
    betas: decay rates of m and v, in [0, 1) (default 0.9, 0.999).
    eps: added to the denominator, not negative (default 1e-8).
    weight_decay: decoupled, per step, times lr (default 0.01).
    alpha: weight of the global direction Delta_G in every step, not negative (default 0.5).
    blocks: `Blocks.of(model)`; needed for rounds.

    Raises InputError if a setting is out of range, or a group sets `maximize`, `amsgrad`, `differentiable` or Adam's
    coupled weight decay, which FedAdamW does not support.
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
        betas = (float(betas[0]), float(betas[1]))
        check_adamw(betas, weight_decay)
        check(eps >= 0, f"eps={eps} must not be negative")  # torch allows 0 too
        check(alpha >= 0, f"alpha={alpha} must not be negative")
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "alpha": alpha}
        super().__init__(params, settings | BEFORE_A_ROUND)
        self.blocks = blocks

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"blocks": self.blocks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state, of FedAdamW or of torch.optim.AdamW; raises InputError for any other."""
        for group in state["param_groups"]:
            _check_group(group)
        for values in state["state"].values():
            known = values.keys() in (ADAMW_STATE, FEDADAMW_STATE, FEDADAMW_STATE | ROUND_STATE)
            check(not values or known, f"this state is not AdamW's: a parameter has {', '.join(values)}")
        for group in state["param_groups"]:  # states of SGD and RAdam differ from AdamW's only in their settings
            known = "amsgrad" in group or "share" in group
            check(known, f"this state is not AdamW's: its settings are {', '.join(k for k in group if k != 'params')}")
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in {**self.defaults, **BEFORE_A_ROUND}.items():
                group.setdefault(key, value)
        for values in self.state.values():
            for theirs, ours in (("exp_avg", "m"), ("exp_avg_sq", "v")):
                if theirs in values:
                    values[ours] = values.pop(theirs)
            if values:
                values["step"] = torch.as_tensor(values["step"], dtype=torch.float64)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; raises InputError if it has a setting that FedAdamW does not support."""
        _check_group(param_group)
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one local step; parameters without a gradient do not change, as with torch's optimizers.

        closure: computes the loss and its gradients; its value is returned. Raises InputError for sparse gradients.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        has_gradients = any(p.grad is not None for group in self.param_groups for p in group["params"])
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            fusable: dict[tuple[float, torch.device], list[Tensor]] = {}  # by steps and device: one fused call each
            for p, steps in zip(parameters, self._count_steps(parameters), strict=True):
                if _is_plain(p, self.state[p]):
                    fusable.setdefault((steps, p.device), []).append(p)
                else:
                    self._step_one(p, steps, group)
            for (steps, _), same_steps in fusable.items():
                self._step_fused(same_steps, steps, group)
            group["lr_sum"] += float(group["lr"]) if has_gradients else 0.0
        return loss

    def _count_steps(self, parameters: Sequence[Tensor]) -> list[float]:
        """Add one to the steps of each parameter and return them."""
        for p in parameters:
            assert p.grad is not None
            if p.grad.is_sparse:
                raise InputError("FedAdamW takes dense gradients; use nn.Embedding(sparse=False)")
            if not self.state[p]:
                self.state[p] = {"step": ZERO.clone(), "m": torch.zeros_like(p), "v": torch.zeros_like(p)}
        if not parameters:
            return []
        steps = torch.stack([self.state[p]["step"].double().cpu() for p in parameters]) + 1
        for p, step in zip(parameters, steps.unbind(), strict=True):  # a loaded step may be float32, and shared
            self.state[p]["step"] = step
        return list(steps.tolist())

    def _step_fused(self, parameters: list[Tensor], steps: float, group: dict[str, Any]) -> None:
        """Do `_step_one` for many parameters by torch's fused AdamW, plus one pass for the global direction.

        Its kernel debiases m and v by the steps of this round; scaled lr and eps correct it for carried moments.
        """
        lr, beta1, beta2 = float(group["lr"]), *map(float, group["betas"])
        k = torch.tensor(steps, dtype=torch.float64, device="cpu")
        m_steps, v_steps = self._ages(k, group)
        v_scale = float((debias(beta2, v_steps) / debias(beta2, k)).sqrt())
        scale = v_scale * float(debias(beta1, k) / debias(beta1, m_steps))
        states = [self.state[p] for p in parameters]
        before = torch.full((len(parameters),), steps - 1, dtype=torch.float32, device=parameters[0].device)
        adamw_(
            [_real(p) for p in parameters],
            [_real(p.grad.resolve_conj()) for p in parameters if p.grad is not None],
            [_real(state["m"]) for state in states],
            [_real(state["v"]) for state in states],
            [],
            list(before.unbind()),  # the call adds one
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr * scale,
            weight_decay=group["weight_decay"] / scale,
            eps=group["eps"] * v_scale,
            maximize=False,
        )
        directions = [(p, state["delta"]) for p, state in zip(parameters, states, strict=True) if "delta" in state]
        if directions and group["alpha"]:
            torch._foreach_add_([p for p, _ in directions], [d for _, d in directions], alpha=-lr * group["alpha"])

    def _ages(self, steps: Tensor, group: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the number of gradients in m and in v after `steps` of this round."""
        t = group["t"]
        kept = t if isinstance(t, tuple | list) else (t, t)
        t_m, t_v = (
            0.0 if how == "restart" else t for how, t in zip(algorithm.SHARES[group["share"]], kept, strict=True)
        )
        return steps + t_m, steps + t_v

    def _step_one(self, p: Tensor, steps: float, group: dict[str, Any]) -> None:
        assert p.grad is not None
        state, y = self.state[p], _real(p)
        k, lr = (torch.tensor(n, dtype=torch.float64, device="cpu") for n in (steps, float(group["lr"])))
        m_steps, v_steps = self._ages(k, group)
        before = Moments(_real(state["m"]), _real(state["v"]))
        beta1, beta2 = map(float, group["betas"])
        u, after = adamw(
            _real(p.grad.resolve_conj()).to(y), before, m_steps, v_steps, betas=(beta1, beta2), eps=group["eps"]
        )
        delta = _real(state["delta"]) if "delta" in state else y.new_zeros(())
        y.copy_(take_aligned_step(y, u, delta, lr, alpha=group["alpha"], weight_decay=group["weight_decay"]))
        before.m.copy_(after.m)
        before.v.copy_(after.v)

    @torch.no_grad()
    def start_round(self, down: Broadcast) -> None:
        """Start a round: load x (into the model), Delta_G and t, expand the block means v_bar to v, reset m.

        Raises InputError if `down` is for another model or has invalid numbers, RuntimeError without blocks.
        """
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
            received = {field: view[name].to(p, copy=True) for field, view in views.items()}
            self.state[p] = {"step": ZERO.clone(), **received}
        t = float(server.t) if len(server.t) == 1 else tuple(server.t.tolist())  # of both moments, or of m and v
        for group in self.param_groups:
            group.update(share=down.share, t=t, lr_sum=0.0)

    @torch.no_grad()
    def finish_round(self) -> Upload:
        """Return the upload to the server: delta = y - x (d,), block means of v (B,), steps and mean learning rates.

        The model does not change. Raises RuntimeError before `start_round`, or if no step followed it.
        """
        blocks = self._blocks()
        parameters = self._parameters()
        states = {name: self.state[p] for name, p in parameters.items()}
        if not all("x" in state for state in states.values()):
            raise RuntimeError("finish_round before start_round: no round has started")
        steps = max(float(state["step"]) for state in states.values())
        if steps == 0:
            raise RuntimeError("finish_round before the first step after start_round")
        share = self.param_groups[0]["share"]
        how_m, how_v = algorithm.SHARES[share]
        delta = blocks.layout.flatten({name: p - states[name]["x"] for name, p in parameters.items()})
        m = blocks.layout.flatten({name: state["m"] for name, state in states.items()})
        v = blocks.layout.flatten({name: state["v"] for name, state in states.items()})
        up = algorithm.Up(
            delta,
            algorithm.pack(m, how_m, blocks).clone(),
            algorithm.pack(v, how_v, blocks),
            delta.new_full((1,), steps, dtype=at_least_single(delta)),
        )
        rates = {n: g["lr_sum"] / steps for g in self.param_groups for n in g["param_names"]}
        lr = torch.tensor([rates[name] for name in blocks.layout.names], dtype=at_least_single(delta))
        return Upload(blocks.layout, blocks.fingerprint, share, up, lr)

    def _blocks(self) -> Blocks:
        if self.blocks is None:
            raise RuntimeError("rounds need blocks: FedAdamW(..., blocks=fedadamw.Blocks.of(model))")
        return self.blocks

    def _parameters(self) -> dict[str, Tensor]:
        """Return the parameters of the blocks' layout, by name and in its order."""
        layout = self._blocks().layout
        named = dict(self._iterate_named())
        parameters = {name: named[name] for name in layout.names if name in named}
        extra = {name: p for name, p in named.items() if p.requires_grad and name not in parameters}
        problem = layout.difference(Layout.of_tensors(parameters | extra))
        if problem:
            raise InputError(f"the optimizer's parameters are not those of its blocks: {problem}")
        return parameters

    def _iterate_named(self) -> Iterator[tuple[str, Tensor]]:
        for group in self.param_groups:
            if "param_names" not in group:
                raise InputError("pass model.named_parameters(), not model.parameters(): rounds need names")
            yield from zip(group["param_names"], group["params"], strict=True)


def _is_plain(p: Tensor, state: Mapping[str, Tensor]) -> bool:
    """Return whether torch's fused kernels support this parameter, its gradient and its moments."""
    assert p.grad is not None
    g, m, v = p.grad, state["m"], state["v"]
    same_type = p.dtype == g.dtype == m.dtype == v.dtype
    contiguous = p.is_contiguous() and g.is_contiguous() and m.is_contiguous() and v.is_contiguous()
    return same_type and contiguous and (p.is_cpu or p.is_cuda)


def _real(t: Tensor) -> Tensor:
    """Return `t`, or if it is complex, a view (..., 2) of its real and imaginary parts, as in torch's AdamW."""
    return torch.view_as_real(t) if t.is_complex() else t


def _check_group(group: Mapping[str, Any]) -> None:
    """Raise InputError if a group of parameters has a setting that FedAdamW does not support."""
    for name in UNSUPPORTED:
        check(not group.get(name), f"{name}={group.get(name)}: FedAdamW does not support this setting")
    coupled = not group.get("decoupled_weight_decay", True) and group.get("weight_decay", 0) != 0
    check(not coupled, "decoupled_weight_decay=False: FedAdamW decays weights as AdamW does, not as Adam")
