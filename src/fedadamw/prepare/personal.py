"""Which parameters are personal: patterns of settings become names, and the algorithm one with a part for them."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import nn

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.algorithms import registry
from fedadamw.engine.parts import server_side
from fedadamw.engine.personal import WithPersonal
from fedadamw.engine.workspace import Workspace
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import InputError, check, suggest
from fedadamw.vector import statistics, trainable

Build = Callable[[Experiment, nn.Module], AnyAlgorithm]
SHOWN = 5  # names in a message


def check_personal(experiment: Experiment, *, remote: bool) -> None:
    """Raise InputError if personal parameters, or clients' own models, contradict other settings.

    remote: the clients are Flower's nodes.
    """
    personal, name = experiment.personal, experiment.algorithm_name
    if personal is not None and personal.finetune:
        check(not remote, f"personal.finetune={personal.finetune} needs simulated clients, not Flower's nodes")
        _check_tuning(experiment, f"personal.finetune={personal.finetune}")
    has_models = registry.ALGORITHMS[name].own_model is not None
    if has_models:
        _check_own(experiment, f"algorithm.name={name!r}")
    if personal is not None and personal.parameters:
        check(not has_models, f"algorithm.name={name!r} gives each client a whole model: leave out personal.parameters")
        _check_own(experiment, "personal.parameters")
        _check_scored(experiment, "personal.parameters")


def _check_own(experiment: Experiment, given: str) -> None:
    """Raise InputError if settings contradict numbers that each client keeps."""
    lora = experiment.lora
    if lora is not None:
        whole = f"lora.aggregate={lora.aggregate!r} {{}}: use factors or frozen-a with {given}"
        check(not lora.changes_base, whole.format("folds the mean of A and B into the base, for which both travel"))
        check(lora.aggregate != "alternate", whole.format("trains A and B in turn"))
        check(lora.ranks is None, f"lora.ranks pads what all clients share: not with {given}")
    check(not experiment.training.diagnostics, f"training.diagnostics compares clients' whole models: not with {given}")


def _check_scored(experiment: Experiment, given: str) -> None:
    """Raise InputError if the global model's score is asked for, and warn if there is none at all."""
    check(not experiment.keep_best, f"keep_best keeps what is shared only: not with {given}")
    if not experiment.training.client_evaluation:
        warnings.warn(
            f"{given}: no global model is tested; for scores set partition.held_out=0.2, training.client_evaluation=1",
            stacklevel=2,
        )


def check_shared(experiment: Experiment, place: str) -> None:
    """Raise InputError if the clients of a run have personal parameters, so that it has no model of all of them."""
    own = experiment.personal is not None and experiment.personal.parameters
    check(
        not own, f"{place}: its clients have parameters of their own; take one's model: fedadamw export RUN --client N"
    )


def _check_tuning(experiment: Experiment, given: str) -> None:
    lora, evaluated = experiment.lora, experiment.training.client_evaluation
    check(evaluated > 0, f"{given} is scored on clients' own held-out samples: set training.client_evaluation")
    whole = lora is None or (lora.ranks is None and lora.aggregate != "alternate")
    check(whole, f"{given} trains all adapters at once: not with lora.ranks or lora.aggregate='alternate'")


def build_parts(experiment: Experiment, model: nn.Module, build_algorithm: Build) -> tuple[Workspace, AnyAlgorithm]:
    """Return the workspace of `model` and the algorithm that trains it, with a part for personal parameters if any."""
    names = find_personal(experiment, model)
    if not names:
        return Workspace(model), build_algorithm(experiment, model)
    with _training(model, [name for name in trainable(model) if name not in names]):
        shared = build_algorithm(experiment, model)
    with _training(model, names):
        own = build_algorithm(experiment, model)
    workspace = Workspace(model, names)
    s, k = len(workspace.shared), len(workspace.shared_statistics)
    return workspace, WithPersonal(
        shared=shared,
        own=own,
        server=server_side(own, experiment.training.outer),
        initial=workspace.y[s:].clone(),
        statistics=workspace.statistics[k:].clone(),
    )


def find_personal(experiment: Experiment, model: nn.Module) -> tuple[str, ...]:
    """Return the names of the personal parameters and running statistics, in the model's order.

    A layer's statistics are personal with any of its own parameters, or by their own names.
    Raises InputError if a pattern matches nothing, or all of them everything that is trained.
    """
    patterns = () if experiment.personal is None else experiment.personal.parameters
    parameters, running = list(trainable(model)), list(statistics(model))
    for pattern in patterns:
        _check_matches(pattern, model, [*parameters, *running])
    chosen = [name for name in parameters if _matches(name, patterns)]
    check(
        not chosen or len(chosen) < len(parameters),
        f"personal.parameters={list(patterns)} are all {len(parameters)} trained parameters: nothing would be sent",
    )
    layers = {name.rpartition(".")[0] for name in chosen}
    return (*chosen, *(name for name in running if name.rpartition(".")[0] in layers or _matches(name, patterns)))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_matches(pattern: str, model: nn.Module, names: Sequence[str]) -> None:
    """Raise InputError if a pattern matches none of the names."""
    if any(fnmatchcase(name, pattern) for name in names):
        return
    frozen = [name for name, _ in model.named_parameters() if fnmatchcase(name, pattern)]
    given = f"personal.parameters: {pattern!r} matches no"
    if frozen:
        raise InputError(f"{given} trained parameter ({frozen[0]} is frozen)")
    ends = list(dict.fromkeys([*names[:1], *names[-SHOWN:]]))
    hint = suggest(pattern, names) or f"; names are such as {', '.join(ends)}"
    raise InputError(f"{given} parameter{hint} (a pattern has * for any letters: 'classifier.*')")


@contextmanager
def _training(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """A context in which only these of the trained parameters are."""
    parameters = trainable(model)
    for name, parameter in parameters.items():
        parameter.requires_grad = name in names
    try:
        yield
    finally:
        for parameter in parameters.values():
            parameter.requires_grad = True
