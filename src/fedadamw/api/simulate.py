"""`fedadamw.simulate`: a federated run of any model on any data."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedadamw.api.partition import count_clients, from_lists
from fedadamw.api.python_task import Functions, Loss, Metric, Predict, PythonTask, SampleLosses, check_functions
from fedadamw.api.result import Result
from fedadamw.api.rows import Collate, digest_tensors, open_rows
from fedadamw.api.session import AnyCallback, run_session
from fedadamw.data.partition import Partition, hold_out
from fedadamw.engine.ranks import current_team
from fedadamw.models.loading import build_seeded
from fedadamw.prepare.checks import check_settings
from fedadamw.prepare.problem import Problem, PythonFacts
from fedadamw.prepare.simulation import Prepared, assemble, set_up_process
from fedadamw.randomness import Purpose, numpy_generator, torch_seed
from fedadamw.report.client_scores import NO_SCORES
from fedadamw.report.metrics import TUNED
from fedadamw.runner.digest import UNDER_CLOCK
from fedadamw.settings.data import PYTHON
from fedadamw.settings.experiment import Experiment, list_sections
from fedadamw.settings.load import parse_settings, set_path
from fedadamw.settings.privacy import PrivacySettings
from fedadamw.validation import InputError, check, shorten
from fedadamw.vector import statistics

EVALUATION_BATCH = 500  # held-out samples at once, unless training.evaluate_batch says otherwise
Model = nn.Module | Callable[[], nn.Module]
OF_RECIPES = ("data", "model", "partition", "lora", "federation")  # sections that choose model and data by name
COUNTER = "num_batches_tracked"  # of BatchNorm
ALSO_HERE = ("data.resident", "model.blocks")
BY_CLOCK = tuple(f"federation.{name}" for name in UNDER_CLOCK)  # with devices
SPLIT = ("algorithm", "training")  # sections that are arguments in part


def simulate(
    model: Model,
    train: Any,
    test: Any,
    clients: Sequence[Any],
    *,
    held_out: float | Sequence[Any] | None = None,
    loss: Loss | None = None,
    sample_losses: SampleLosses | None = None,
    predict: Predict | None = None,
    metrics: Mapping[str, Metric] | None = None,
    collate: Collate | None = None,
    algorithm: str = "fedadamw",
    algorithm_settings: Mapping[str, object] | None = None,
    rounds: int = 100,
    clients_per_round: int | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 50,
    lr: float = 3e-4,
    schedule: Literal["cosine", "constant"] = "cosine",
    seed: int = 0,
    device: str = "auto",
    ranks: int = 1,
    settings: Mapping[str, object] | None = None,
    privacy: Mapping[str, object] | PrivacySettings | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    callbacks: Iterable[AnyCallback] = (),
    quiet: bool = False,
) -> Result:
    """Train `model` over simulated clients, with the engine, files and pages of the command `fedadamw run`.

    Model and data:
        model: trained in place; or a function that makes it, with torch's generator seeded by `seed`. Parameters that
            do not require gradients are frozen, and are not sent.
        train, test: (inputs..., targets) tensors, whose first dimension is the samples'; or any map-style dataset; or
            a DataLoader, of which the dataset and collate_fn are used. Datasets are read in this process, between the
            steps. `test` is held out by the server.
        clients: the sample numbers of each client, such as `fedadamw.partition.dirichlet(labels, clients=100)` gives.
        held_out: each client's own held-out samples, on which the global model is scored after every round: a share of
            its samples that it then does not train on, or the sample numbers of each client.
        loss: called as loss(outputs, targets, reduction="none"), gives a number for each sample, or several, whose
            mean is taken. Cross-entropy by default. A batch's loss is the mean over all its samples: torch divides
            by the sum of class weights, and leaves out targets of ignore_index.
        sample_losses: instead of `loss`, (model, batch) -> (n,), for batches that are not (inputs..., targets).
        predict: (model, batch) -> (outputs, targets) for such batches. Needed only for metrics.
        metrics: by name, each of all held-out outputs and targets, returns a float. The first is the main one: it
            should be higher for better models.
        collate: puts samples of a dataset into a batch; torch's default_collate by default.

    Training, as in `fedadamw settings`:
        algorithm, algorithm_settings: its name, and its own settings such as {"alpha": 0.5}.
        clients_per_round: 10 by default, or all if there are fewer. steps, epochs: local work in a round, one of the
            two; one epoch by default.
        settings: any other, by path: {"training.precision": "bf16", "stack": 8}. With held_out,
            training.client_evaluation says how often clients are scored, training.evaluate_clients how many. With
            devices, also federation.quorum, over_selection, deadline_s and wait_s.
        privacy: differential privacy, as of the section `privacy`: {"epsilon": 8.0, "clip": 0.5}. Needs `steps`, and
            the extra fedadamw[privacy].
        ranks: processes that share a round on a CPU. On several GPUs, start the script with torchrun.

    The run:
        out: its folder, with records, checkpoint and report; without it they are deleted with the result.
        resume: go on with the run in `out`, bit for bit; starts it if `out` is empty. Give the same functions: whether
            loss and metrics are the same cannot be checked.
        callbacks: Callback objects, or functions of each round's Record. A true value stops the run.
        quiet: show no progress.

    Raises InputError, one line, for whatever does not fit; DivergedError if no client's numbers are finite; QuorumError
    if devices are away for too long. Ctrl-C saves the last round first. Whatever is raised, the model has the weights
    of the last complete round.
    """
    own = _with_name(algorithm, algorithm_settings or {})
    functions = check_functions(loss, sample_losses, predict, metrics)
    objects = Objects(model, train, test, clients, held_out, functions, collate)
    named: dict[str, Any] = {"seed": seed, "device": device, "algorithm": own, "privacy": _as_settings(privacy)}
    amount = {"rounds": rounds, "clients_per_round": clients_per_round, "steps": steps, "epochs": epochs}
    named["training"] = {**amount, "batch_size": batch_size, "lr": lr, "schedule": schedule}
    run = _build_experiment(named, settings or {}, objects), partial(_prepare, objects=objects)
    return run_session(*run, out=out, resume=resume, ranks=ranks, callbacks=callbacks, quiet=quiet)


def _with_name(algorithm: str, settings: Mapping[str, object]) -> dict[str, object]:
    check("name" not in settings, "algorithm_settings: give the name as algorithm=")
    return {"name": algorithm, **settings}


def _as_settings(privacy: Mapping[str, object] | PrivacySettings | None) -> dict[str, Any] | None:
    """Return the section `privacy` as the settings that were given of it."""
    if isinstance(privacy, PrivacySettings):
        return privacy.model_dump(exclude_unset=True)
    check(privacy is None or isinstance(privacy, Mapping), f"privacy={shorten(privacy)}: give its settings by name")
    return None if privacy is None else dict(privacy)


class Objects(NamedTuple):
    """What a run is made of, besides settings; see `simulate`."""

    model: Model
    train: Any
    test: Any
    clients: Sequence[Any]
    held_out: float | Sequence[Any] | None
    functions: Functions
    collate: Collate | None


def _build_experiment(named: dict[str, Any], settings: Mapping[str, object], objects: Objects) -> Experiment:
    """Return the experiment of the named arguments and of `settings`, by path."""
    training, clients, own = named["training"], count_clients(objects.clients), objects.held_out is not None
    training |= {"client_evaluation": 1} if own else {}
    if training["steps"] is None and training["epochs"] is None:
        training["epochs"] = 1
    if training["clients_per_round"] is None:
        training["clients_per_round"] = min(10, clients)
    timed = any(path.partition(".")[0] == "devices" for path in settings)
    for path, value in settings.items():
        check(timed or path not in BY_CLOCK, f"settings: {path!r} acts with devices; set one of these too")
        allowed = path.partition(".")[0] not in OF_RECIPES or path in (*ALSO_HERE, *BY_CLOCK)
        check(allowed, f"settings: {path!r} is for recipes; simulate takes model, data and clients as they are")
        is_section = path in (*list_sections(), "algorithm")
        whole = path not in SPLIT and (value is None or isinstance(value, Mapping))  # {"training.outer": {}}
        check(whole or not is_section, f"settings: {path!r} is a section; set one of its settings, '{path}.NAME'")
        set_path(named, path, value)
    named["data"] = {**named.get("data", {}), "task": PYTHON, "source": PYTHON}
    named["model"] = {**named.get("model", {}), "name": PYTHON}
    named["partition"] = {"kind": PYTHON, "clients": clients, "held_out": _check_share(objects)}
    experiment = parse_settings(named)
    every = experiment.training.client_evaluation
    check(
        own or not every, f"training.client_evaluation={every} needs held_out, a share or each client's sample numbers"
    )
    return experiment


def _check_share(objects: Objects) -> float:
    """Return the share of its samples that each client holds out, 0 if numbers are given or there are none.

    Raises InputError if `held_out` is neither a share nor a list of as many clients, or if a metric has a name that
    the file of their scores uses.
    """
    given, clients = cast(Any, objects.held_out), len(objects.clients)
    if given is None:
        return 0.0
    for name in objects.functions.metrics:
        taken = name in (*NO_SCORES, "loss") or name.startswith(TUNED)
        check(not taken, f"metrics: {name!r} is taken in client_scores.jsonl; choose another name")
    if _is_number(given):
        check(0 < given < 1, f"held_out={shorten(given)} must be between 0 and 1")
        return float(given)
    is_list = hasattr(given, "__len__") and not isinstance(given, str | bytes | Mapping)
    is_list &= getattr(given, "shape", None) != ()  # a tensor with one number
    check(is_list, f"held_out={shorten(given)}: give a share, or each client's sample numbers")
    check(len(given) == clients, f"held_out: has {len(given)} clients, and clients {clients}")
    return 0.0


def _is_number(given: object) -> bool:
    """Whether it is a share, of any type of number, not the sample numbers of clients."""
    return isinstance(given, Real) and not isinstance(given, bool)


def _divide(objects: Objects, experiment: Experiment, samples: int) -> tuple[Partition, Partition | None]:
    """Return what each client trains on, and what it holds out; raises InputError if the two share a sample."""
    partition, given = from_lists(objects.clients, samples), cast(Any, objects.held_out)
    if given is None:
        return partition, None
    if _is_number(given):
        share = experiment.partition.held_out
        return hold_out(partition, share, numpy_generator(experiment.seed, Purpose.HELD_OUT))
    own = from_lists(given, samples, "held_out", may_be_empty=True)
    both = np.intersect1d(partition.samples, own.samples)
    check(not len(both), f"held_out: {len(both):,} samples are trained on too, such as {both[:1].tolist()}")
    return partition, own


def _prepare(experiment: Experiment, objects: Objects) -> Prepared:
    """Check model, data and clients, and bring them to the device."""
    check_settings(experiment, remote=False)
    device, resident = set_up_process(experiment), experiment.data.resident
    train = open_rows("train", objects.train, objects.collate, device, resident=resident)
    test = open_rows("test", objects.test, objects.collate, device, resident=resident)
    partition, held_out = _divide(objects, experiment, len(train))
    task = PythonTask(train, test, objects.functions.on(device), experiment.training.evaluation_batch(EVALUATION_BATCH))
    model = _make_model(objects.model, experiment.seed).to(device)
    frozen = [*(p for p in model.parameters() if not p.requires_grad), *model.buffers()]
    with torch.no_grad():
        current_team(device).broadcast(frozen)  # a model that a script draws at random differs between ranks
    facts: PythonFacts = {"classes": train.classes, "frozen": digest_tensors(_list_fixed(model))}
    problem = Problem(model, task, facts)
    return assemble(experiment, problem, train, test, partition, device, held_out)


def _list_fixed(model: nn.Module) -> list[Tensor]:
    """Return what training leaves as it is: a module that was trained in place has it still, to go on with."""
    moving = statistics(model)  # BatchNorm's, which the checkpoint has
    buffers = (b for name, b in model.named_buffers() if name not in moving and not name.endswith(COUNTER))
    return [*(p for p in model.parameters() if not p.requires_grad), *buffers]


def _make_model(model: Model, seed: int) -> nn.Module:
    """Return the module, made with torch's generator seeded if `model` is a function; raises InputError for others."""
    if isinstance(model, nn.Module):
        return model
    made = build_seeded(model, torch_seed(seed, Purpose.INITIAL_MODEL)) if callable(model) else model
    if not isinstance(made, nn.Module):
        raise InputError(f"model: {type(made).__name__} is not a torch.nn.Module, or a function that returns one")
    return made
