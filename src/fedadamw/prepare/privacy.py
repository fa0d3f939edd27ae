"""Differential privacy: which settings would break its guarantee, and how the gradients of samples are made private."""

from fedadamw.engine.private_gradient import SamplePrivacy
from fedadamw.prepare.client_privacy import check_client_privacy
from fedadamw.randomness import Entropy
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import InputError, check

MOST_NOISE = 1e12  # in a number of a gradient: with more, second moments leave float32's range


def check_privacy(experiment: Experiment, *, remote: bool) -> None:
    """Raise InputError if a setting would break what `privacy` promises; the message says what to set instead.

    remote: the clients are Flower's nodes.
    """
    if experiment.privacy is not None and experiment.privacy.unit == "sample":
        _check_samples(experiment)
    elif experiment.privacy is not None:
        check_client_privacy(experiment, remote=remote)


def _check_samples(experiment: Experiment) -> None:
    t, data = experiment.training, experiment.data
    why = "with privacy.unit=sample"
    check(t.clip is None, f"training.clip={t.clip} would clip the noise, too: set training.clip=null {why}")
    check(t.epochs is None, f"training.epochs={t.epochs}: batches are drawn at random; set training.steps {why}")
    check(
        not experiment.federation.sample_counts,
        f"federation.sample_counts=true tells the server how many samples a node has: set it to false {why}",
    )
    check(
        t.weighting == "uniform",
        f"training.weighting={t.weighting!r} tells how many samples a client has: set it to uniform {why}",
    )
    check(
        t.mean == "weighted",
        f"training.mean={t.mean!r} compares clients' updates, which are mostly noise: set it to weighted {why}",
    )
    check(not t.diagnostics, f"training.diagnostics=true looks at each client's gradients: set it to false {why}")
    check(
        not t.group_by_length,
        f"training.group_by_length=true puts samples into batches by what they are: set it to false {why}",
    )
    check(not data.packing, f"data.packing=true computes samples in one row: set it to false {why}")
    if experiment.personal is not None and experiment.personal.finetune:
        given = f"personal.finetune={experiment.personal.finetune}"
        raise InputError(f"{given} takes steps that no epsilon counts: set it to 0 {why}")
    check(
        experiment.shards == 1, f"shards={experiment.shards}: gradients of samples need one process; set it to 1 {why}"
    )


def sample_privacy(experiment: Experiment, entropy: Entropy) -> SamplePrivacy | None:
    """Return how gradients of samples are clipped and noised; None without privacy of samples.

    experiment: with its noise multiplier, not with an epsilon to keep to.
    """
    privacy = experiment.privacy
    if privacy is None or privacy.unit != "sample":
        return None
    if privacy.noise_multiplier is None:
        raise InputError("privacy.epsilon: the noise that keeps to it is not known here; give privacy.noise_multiplier")
    found = SamplePrivacy(privacy.clip, privacy.noise_multiplier, experiment.training.batch_size, entropy)
    noise = found.noise_multiplier * found.clip / found.batch_size
    much = f"noise of {noise:.3g} in each number of a gradient is too much for float32"
    check(noise <= MOST_NOISE, f"privacy: {much}; set a smaller privacy.clip or privacy.noise_multiplier")
    return found
