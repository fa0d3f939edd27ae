"""The architecture that the section `model` names; of a run's folder, that of the model which the run trained."""

from pathlib import Path

from fedadamw.models.loading import is_local
from fedadamw.settings.load import load
from fedadamw.settings.model import ModelSettings
from fedadamw.validation import check, parse_path

CONFIG = "config.yaml"  # in a run's folder
OWN = ("tokenizer", "pad_token", "depth", "norm")  # settings that are part of the trained model


def is_run(name: str) -> bool:
    """Whether a model's name is the folder of a run, rather than of a model."""
    if not is_local(name):
        return False
    path = Path(name).expanduser()
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def resolve_model(model: ModelSettings, *later: Path) -> ModelSettings:
    """Return the settings of the architecture alone, which a run's folder stands for; other settings unchanged.

    later: the folders of the runs that started from this model. Raises InputError if `model` asks for another one.
    """
    run = is_run(model.name)
    check(run or not model.best, f"model.best: {model.name!r} is no run's folder; only a run keeps its best round")
    if not run:
        return model
    path = parse_path("model.name", model.name).resolve()
    check(path not in later, f"model.name={model.name!r}: the run starts from itself")
    trained = resolve_model(load(str(path / CONFIG)).model, path, *later)
    for name in OWN:
        value, own = getattr(model, name), getattr(trained, name)
        usual = ModelSettings.model_fields[name].default
        check(value in (usual, own), f"model.{name}={value!r}: the model of {model.name} has {own!r}")
    return trained.model_copy(update={"blocks": model.blocks, "fresh": True})
