"""Updates that cannot be normalised by local steps, each as one line that says what to set."""

from fedadamw.settings.experiment import Experiment
from fedadamw.validation import check


def check_normalize(experiment: Experiment, *, remote: bool) -> None:
    """Raise InputError if updates are to be normalised and cannot be. remote: the clients are Flower's nodes."""
    if not experiment.training.normalize:
        return
    t, lora, privacy, f = experiment.training, experiment.lora, experiment.privacy, experiment.federation
    given = "training.normalize=true"
    check(t.mean == "weighted", f"{given} is of a mean of all updates; set training.mean=weighted, not {t.mean!r}")
    if lora is not None:
        products = f"{given}: lora.aggregate={lora.aggregate!r} takes the clients' mean as it is"
        check(not lora.changes_base, f"{products}; set lora.aggregate=factors, frozen-a or alternate")
        lacking = f"{given}: with lora.ranks what a client lacks counts as 0, which is no update of its steps"
        check(lora.ranks is None, f"{lacking}; leave out lora.ranks")
    equal = f"{given}: with privacy.unit=client all clients take training.steps, and updates are clipped as they are"
    check(privacy is None or privacy.unit != "client", f"{equal}; set training.normalize=false")
    if remote and t.epochs:
        unknown = f"{given}: with training.epochs={t.epochs} a node's steps follow from its number of samples"
        check(f.sample_counts, f"{unknown}; set federation.sample_counts=true, or training.steps")
        bound = f"{given}: federation.max_norm={f.max_norm} bounds updates, of any number of steps, as they are sent"
        check(f.max_norm is None, f"{bound}; leave it out with training.epochs (federation.norm_factor bounds them)")
