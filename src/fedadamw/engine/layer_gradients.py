"""Gradients of samples from one plain backward, of models whose trained parameters are those of common layers.

A sample's gradient of a linear layer's weight is a sum over its positions of products of the output's gradient and the
input, which a plain backward has anyway. So all samples go through the model together, by its own kernels, and only the
gradients of weights, which autograd would sum over samples, are taken here, sample by sample (summands.py). For small
layers torch.func.vmap takes twice as long.

Rows must be samples: a layer that sees others (windows of an image, positions first) is refused by its number of rows.
Since that number can be right by chance, parameters may be used elsewhere, too, and a layer may look at a whole batch,
gradients are first compared with those of samples alone and beside others. A sample cannot add more than the clipping
norm whatever they are, since what is clipped is what is summed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import functional_call

from fedadamw.engine.summands import Products, Rows, Summand
from fedadamw.engine.workspace import Workspace, autocast
from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Batch, Task
from fedadamw.vector import trainable

Rule = Callable[[Any, Tensor, Tensor, str], Summand]  # (layer, inputs x, gradients e of outputs, parameter)
CLOSE, CLOSE_IN_HALF = 1e-2, 0.1  # of a gradient's norm: how far a sample's may be from that of the sample alone
SAME, SAME_IN_HALF = 1e-4, 1e-2  # how far, if only the others of its batch change: as sums of floats do on a GPU


class NotByLayersError(Exception):
    """A layer's rows are not samples, or it is called twice."""


class Call(NamedTuple):
    """What a layer was given, and what it made of it."""

    layer: nn.Module
    inputs: Tensor  # (n, ...)
    outputs: Tensor  # (n, ...)


def _linear(layer: nn.Linear, x: Tensor, e: Tensor, parameter: str) -> Summand:
    x, e = (t[:, None] if t.dim() == 2 else t.flatten(1, -2) for t in (x, e))
    return Rows(e.sum(1)) if parameter == "bias" else _matrix(e, x)


def _conv(layer: nn.Conv2d, x: Tensor, e: Tensor, parameter: str) -> Summand:
    if parameter == "bias":
        return Rows(e.sum((-2, -1)))
    assert not isinstance(layer.padding, str)
    windows = F.unfold(x, layer.weight.shape[-2:], layer.dilation, layer.padding, layer.stride)  # (n, size, places)
    return _matrix(e.flatten(2).mT, windows.mT)


def _matrix(e: Tensor, x: Tensor) -> Summand:
    """Sums over positions of e x^T, for e (n, positions, out) and x (n, positions, in)."""
    return Products(e, x) if Products.fit(e, x) else Rows((e.mT @ x.to(e.dtype)).flatten(1))


def _layer_norm(layer: nn.LayerNorm, x: Tensor, e: Tensor, parameter: str) -> Summand:
    scaled = e if parameter == "bias" else e * F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
    positions = range(1, scaled.dim() - len(layer.normalized_shape))
    return Rows((scaled.sum(list(positions)) if positions else scaled).flatten(1))


def _group_norm(layer: nn.GroupNorm, x: Tensor, e: Tensor, parameter: str) -> Summand:
    scaled = e if parameter == "bias" else e * F.group_norm(x, layer.num_groups, eps=layer.eps)
    return Rows(scaled.flatten(2).sum(2) if scaled.dim() > 2 else scaled)


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
}


class LayerGradients:
    """Computes the gradients of a batch's samples, layer by layer.

    layers: those with trained parameters, and the parameters' names by the attribute. broadcast: trained parameters
    (1, ...) of other modules, such as class tokens, which samples share along their first axis.
    """

    def __init__(
        self,
        workspace: Workspace,
        task: Task,
        training: TrainingSettings,
        layers: dict[nn.Module, dict[str, str]],
        broadcast: Sequence[str],
    ) -> None:
        self.workspace, self.task, self.training = workspace, task, training
        self._layers, self._broadcast = layers, broadcast

    @staticmethod
    def of(workspace: Workspace, task: Task, training: TrainingSettings) -> "LayerGradients | None":
        """Return what does it for the workspace's model; None if a parameter is in no known layer, or in two."""
        layers: dict[nn.Module, dict[str, str]] = {}
        broadcast: list[str] = []
        wanted = set(workspace.layout.names)
        parameters = dict(workspace.module.named_parameters(remove_duplicate=False))
        numbers = {name: id(parameters[name]) for name in wanted}
        if sum(id(p) in numbers.values() for p in parameters.values()) != len(wanted):
            return None
        for place, module in workspace.module.named_modules():
            own = {key: f"{place}.{key}".lstrip(".") for key, _ in module.named_parameters(recurse=False)}
            own = {key: name for key, name in own.items() if name in wanted}
            if own and _is_known(module):
                layers[module] = own
            elif all(parameters[name].dim() > 1 and len(parameters[name]) == 1 for name in own.values()):
                broadcast += own.values()
            else:
                return None
        return LayerGradients(workspace, task, training, layers, broadcast)

    def take(self, batch: Batch) -> dict[str, Summand]:
        """Return the gradients of the samples' losses by parameter; raises NotByLayersError, or as autograd."""
        n, layout = len(batch[0]), self.workspace.layout
        parameters = layout.views(self.workspace.y.detach())
        shared = {name: parameters[name].expand(n, *parameters[name].shape[1:]) for name in self._broadcast}
        shared = {name: t.detach().requires_grad_() for name, t in shared.items()}

        def model(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self.workspace.module, {**parameters, **shared}, args, kwargs)

        calls: dict[nn.Module, Call] = {}
        with self._recorded(calls, n), autocast(self.training, self.workspace.y.device):
            total = self.task.losses(model, batch).sum()
        tensors = [*(call.outputs for call in calls.values()), *shared.values()]
        found = torch.autograd.grad(total, tensors, allow_unused=True)
        rows = dict(zip(shared, found[len(calls) :], strict=True))
        gradients: dict[str, Summand] = {name: Rows(g.flatten(1)) for name, g in rows.items() if g is not None}
        with torch.no_grad():
            for call, e in zip(calls.values(), found, strict=False):
                if e is not None:  # the loss depends on it
                    gradients |= self._apply_rule(call, e)
        return {name: gradients[name] for name in layout.names if name in gradients}

    def _apply_rule(self, call: Call, e: Tensor) -> dict[str, Summand]:
        rule, found = RULES[type(call.layer)], dict[str, Summand]()
        for own, name in self._layers[call.layer].items():
            g = rule(call.layer, call.inputs, e, own)
            found[name] = Rows(g.rows.to(self.workspace.y.dtype)) if isinstance(g, Rows) else g
        return found

    @contextmanager
    def _recorded(self, calls: dict[nn.Module, Call], n: int) -> Iterator[None]:
        """A context in which the layers' calls are put into `calls`; their rows must be n."""

        def record(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Tensor) -> None:
            (inputs,) = (*args, *kwargs.values())
            if layer in calls or not len(inputs) == len(outputs) == n or inputs.dim() < 2:
                raise NotByLayersError
            if not outputs.requires_grad:
                outputs.requires_grad_()
            calls[layer] = Call(layer, inputs.detach(), outputs)

        handles = [layer.register_forward_hook(record, with_kwargs=True) for layer in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def agrees(self, batch: Batch) -> bool:
        """Whether samples of a batch of several have the gradients that they have alone, and do not see each other.

        The one is tried with nothing dropped at random, the other as the model trains.
        """
        module = self.workspace.module
        modes = {layer: layer.training for layer in module.modules()}
        module.eval()
        try:
            gradients = self.take(batch)
            alike = all(self._is_that_of_sample(gradients, batch, i) for i in (0, len(batch[0]) - 1))
        finally:
            for layer, mode in modes.items():
                layer.training = mode
        return alike and self._is_separate(batch)

    def _is_separate(self, batch: Batch) -> bool:
        """Whether the first sample's gradient stays what it is if the first one takes all others' places, too."""
        device, found = self.workspace.y.device, []
        other = tuple(torch.cat([t[:1]] * len(t)) for t in batch)
        for tried in (batch, other):
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(0)  # the same is dropped
                found.append({name: g.of_sample(0) for name, g in self.take(tried).items()})
        norm = torch.stack([g.norm() for g in found[0].values()]).norm()
        changes = [(g - found[1][name]).norm() for name, g in found[0].items()]
        return bool(torch.stack(changes).norm() <= (SAME_IN_HALF if self._is_half else SAME) * norm)

    @property
    def _is_half(self) -> bool:
        halves = any(p.is_floating_point() and p.dtype.itemsize < 4 for p in self.workspace.module.parameters())
        return halves or self.training.precision == "bf16"

    def _is_that_of_sample(self, gradients: dict[str, Summand], batch: Batch, i: int) -> bool:
        parameters = trainable(self.workspace.module)
        with autocast(self.training, self.workspace.y.device):
            loss = self.task.losses(self.workspace.module, tuple(t[i : i + 1] for t in batch)).sum()
        alone = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        named = dict(zip(parameters, alone, strict=True))
        of_all, close = torch.stack([g.norm() for g in alone]).norm(), CLOSE_IN_HALF if self._is_half else CLOSE
        for name, g in named.items():
            found = gradients[name].of_sample(i) if name in gradients else torch.zeros_like(g).flatten()
            if not (found - g.flatten()).norm() <= close * (g.norm() + close * of_all):
                return False
        return True


def _is_known(module: nn.Module) -> bool:
    """Whether there is a rule for this layer, as it is set."""
    if isinstance(module, nn.Conv2d) and (module.groups > 1 or isinstance(module.padding, str)):
        return False
    return type(module) in RULES and getattr(module, "padding_mode", "zeros") == "zeros"
