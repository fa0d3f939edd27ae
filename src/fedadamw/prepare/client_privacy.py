"""Privacy of clients: what would break it, each as one line that says what to set, and what the engine needs of it."""

from torch import nn

from fedadamw.engine.private_mean import ClientPrivacy
from fedadamw.engine.workspace import Workspace
from fedadamw.prepare.problem import Facts
from fedadamw.randomness import Entropy
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import InputError, check

UNIT = "privacy.unit=client"


def has_client_privacy(experiment: Experiment) -> bool:
    """Return whether what a round gives hides each client's part."""
    return experiment.privacy is not None and experiment.privacy.unit == "client"


def check_client_privacy(experiment: Experiment, *, remote: bool) -> None:
    """Raise InputError if settings would tell more of a client than its clipped part of a noisy sum.

    remote: the clients are Flower's nodes.
    """
    t, lora, personal = experiment.training, experiment.lora, experiment.personal
    check(t.steps is not None, f"{UNIT}: by training.epochs a client's steps follow from its data; set training.steps")
    check(t.weighting == "uniform", f"{UNIT}: all clients have the same weight; set training.weighting=uniform")
    check(t.mean == "weighted", f"{UNIT}: training.mean={t.mean!r} couples clients; set training.mean=weighted")
    check(not t.diagnostics, f"{UNIT}: diagnostics have exact numbers of clients; set training.diagnostics=false")
    if lora is not None:
        folds = f"{UNIT}: lora.aggregate={lora.aggregate!r} adds exact products to the base; set lora.aggregate=factors"
        check(not lora.changes_base, folds)
        check(lora.ranks is None, f"{UNIT}: with lora.ranks clients have unlike parts; leave it out, set lora.r")
    tunes = personal is not None and personal.finetune > 0
    check(not tunes, f"{UNIT}: scores after tuning are exact numbers of clients; leave out personal.finetune")
    if remote:
        _check_remote(experiment)


def _check_remote(experiment: Experiment) -> None:
    """Raise InputError if settings of a federation would."""
    f, every = experiment.federation, experiment.training.client_evaluation
    factor = f"{UNIT}: federation.norm_factor={f.norm_factor} compares clients with each other; set it to null"
    check(f.norm_factor is None, f"{factor} (privacy.clip bounds each)")
    surplus = f"{UNIT}: with federation.over_selection={f.over_selection} a client that fails lets another's upload in"
    check(f.over_selection == 0, f"{surplus}, and moves the sum twice; set it to 0")
    check(not every, f"{UNIT}: nodes' sums over held-out samples have no noise; set training.client_evaluation=0")


def check_client_problem(experiment: Experiment, workspace: Workspace, facts: Facts) -> None:
    """Raise InputError if privacy of clients would not hold for this model and these data."""
    if not has_client_privacy(experiment):
        return
    sums = f"{UNIT}: data.mean is not set, so nodes would send sums of their pixels; set data.mean and data.std"
    check("shape" not in facts or "mean" in facts, sums)
    for name, module in workspace.module.named_modules():
        if not isinstance(module, nn.modules.batchnorm._NormBase) or not module.track_running_stats:
            continue
        if f"{name}.running_mean" not in workspace.personal:
            what = f"{UNIT}: {type(module).__name__} ({name}) would send running statistics without noise"
            raise InputError(f"{what}; take a model without it, or keep it on clients: personal.parameters=['{name}*']")


def build_client_privacy(experiment: Experiment, entropy: Entropy) -> ClientPrivacy | None:
    """Return what hides each client's part; None if nothing has to."""
    privacy, t = experiment.privacy, experiment.training
    if privacy is None or privacy.unit != "client":
        return None
    assert privacy.noise_multiplier is not None  # as resolved
    assert t.steps is not None  # as checked
    return ClientPrivacy(
        noise_multiplier=privacy.noise_multiplier,
        clip=privacy.clip,
        moment_clip=privacy.moment_clip,
        clients=t.clients_per_round,
        steps=t.steps,
        entropy=entropy,
        floor=privacy.floor,
        quantile=privacy.quantile,
    )
