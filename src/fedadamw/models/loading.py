"""Loading models and tokenizers by a hub id, a folder, or a folder inside an installed package."""

import logging
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from fedadamw.validation import InputError, check

PACKAGE = "package:"
Built = TypeVar("Built")


def is_local(name: str) -> bool:
    """Whether a model's name is a folder's, or that of one in a package: on this machine alone.

    A folder that exists is meant by its plain name, too: `bert` is `./bert`, and not a hub id.
    """
    return name.startswith((".", "/", "~", PACKAGE)) or (bool(name.strip()) and os.path.isdir(name))  # noqa: PTH112  (Path.is_dir raises if a name is too long)


def is_hub_id(name: str) -> bool:
    """Whether a model's name is one of the hub (owner/name), not a folder's and not one of this package's."""
    return "/" in name and not is_local(name)


def place_of(setting: str, name: str) -> str:
    """A folder's path, or the hub id; `package:name/folder` is a folder inside an installed package."""
    if name.startswith(PACKAGE):
        package, _, inside = name.removeprefix(PACKAGE).partition("/")
        try:
            found = find_spec(package)
        except (ImportError, ValueError):  # of a package inside one that there is not
            found = None
        if found is None or not found.submodule_search_locations:
            raise InputError(f"{setting}={name!r}: no package {package!r} is installed (pip install {package})")
        path = Path(found.submodule_search_locations[0]) / inside
    elif is_local(name):
        path = Path(name).expanduser()
    else:
        check(bool(name.strip("/")), f"{setting}={name!r}: give a folder (./path) or a hub id (owner/name)")
        return name
    check(path.is_dir(), f"{setting}={name!r}: no such folder")
    return str(path.resolve())


def loaded(setting: str, name: str, load: Callable[[str], Built]) -> Built:
    """`load(place)` of the model or tokenizer `name`; what fails becomes one InputError."""
    quiet_libraries()
    place = place_of(setting, name)
    if setting == "model.name" and is_local(name) and not (Path(place) / "config.json").is_file():
        raise InputError(f"{setting}={name!r}: no model's folder (no config.json)")
    try:
        return load(place)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"{setting}={name!r} could not be loaded: {_first_line(error)}") from error


def pretrained(kind: Any, place: str, config: Any) -> tuple[Any, list[str]]:
    """A model of class `kind` with its weights in float32; and the modules whose weights are fresh, not from there.

    A head of another shape is among these.
    """
    model, found = kind.from_pretrained(
        place,
        config=config,
        ignore_mismatched_sizes=True,  # a fresh head
        use_safetensors=True,  # a .bin file can run code when it is loaded
        dtype=torch.float32,
        output_loading_info=True,
    )
    fresh = [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]
    return model, sorted({key.rpartition(".")[0] for key in fresh} - {""})


def outputs_of(name: str) -> int | None:
    """How many classes the head of a folder's or hub id's model was trained for, None where that is not said."""
    from transformers import AutoConfig

    config = loaded("model.name", name, lambda place: AutoConfig.from_pretrained(place, trust_remote_code=False))
    return len(config.id2label) if "id2label" in config.to_diff_dict() else None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def quiet_libraries() -> None:
    """transformers announces a fresh head and every image processor that would like torchvision; the hub, retries."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    for library in ("transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)


def initial(build: Callable[[], Built], seed: int) -> Built:
    """`build()` with torch's global generator at `seed`, which is put back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()
