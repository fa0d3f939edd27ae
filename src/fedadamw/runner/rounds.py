"""Another number of rounds for a run that has begun: where the learning rates of its rounds do not depend on it."""

from pathlib import Path

from fedadamw.settings.data import PYTHON
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import check


def with_rounds(experiment: Experiment, rounds: int) -> Experiment:
    """Return the experiment with another number of rounds, which is not checked."""
    return experiment.model_copy(update={"training": experiment.training.model_copy(update={"rounds": rounds})})


def check_new_rounds(path: Path, begun: Experiment, rounds: int, done: int, *, in_study: bool) -> None:
    """Raise InputError if the run `begun` in folder `path`, of which `done` rounds are done, cannot have `rounds`."""
    advice = _advise(path, begun)
    was = f"{begun.training.rounds:,}"
    check(
        begun.training.schedule == "constant",
        f"{path}: a run of {was} rounds cannot become one of {rounds:,}: with training.schedule="
        f"{begun.training.schedule} every round's learning rate depends on the number of rounds; start a new run "
        f"{advice}",
    )
    keeps = begun.privacy is None or begun.privacy.epsilon is None
    check(
        keeps,
        f"{path}: a run of {was} rounds cannot become one of {rounds:,}: its noise was searched for {was} rounds, "
        f"after which privacy.epsilon is spent; start a new run {advice}",
    )
    check(rounds > done, f"{path}: has {done:,} rounds already; training.rounds={rounds:,} must be more")
    check(not in_study, f"{path}: is a run of a study, all of whose runs have {was} rounds; copy its folder first")


def _advise(path: Path, begun: Experiment) -> str:
    """Return what a new run can start from."""
    if begun.data.task == PYTHON:
        return "with the trained model, in another folder"
    if begun.personal is not None and begun.personal.parameters:
        return f"from one client's model: fedadamw export {path} --client NUMBER --to FOLDER, then -s model.name=FOLDER"
    return f"from its model with -s model.name={path}"
