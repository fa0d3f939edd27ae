"""Load what transformers reads: from a hub id, a folder, a .gguf file, or a folder inside an installed package."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch

from fedadamw.models.gguf import (
    check_gguf,
    forget_packing,
    is_gguf,
    is_local_gguf,
    load_gguf_config,
    load_gguf_tokenizer,
    split_gguf,
    unpacking,
)
from fedadamw.validation import MAX_SHOWN_CHARACTERS, InputError, check, parse_path, shorten

PACKAGE = "package:"
MAX_REASON_CHARACTERS = 300  # of a library's error message
Loaded = TypeVar("Loaded")


def is_local(name: str) -> bool:
    """Whether `name` is a folder or .gguf file on this machine, also one in an installed package.

    What exists wins over a hub id of the same name: `bert` is `./bert` if there is one.
    """
    is_folder = bool(name.strip()) and os.path.isdir(name)  # noqa: PTH112  (Path.is_dir raises if a name is too long)
    return name.startswith((".", "/", "~", PACKAGE)) or is_folder or is_local_gguf(name)


def is_hub_id(name: str) -> bool:
    """Whether `name` is on the hub (owner/name, owner/name/FILE.gguf): not here, and no model of this package."""
    return "/" in name and not is_local(name)


def locate(setting: str, name: str) -> str:
    """Return the absolute path of a folder or .gguf file, or the hub id unchanged.

    `package:name/folder` is a folder inside an installed package, `package:name/FILE.gguf` a file there.
    """
    if name.startswith(PACKAGE):
        path = _locate_in_package(setting, name)
    elif is_local(name):
        path = parse_path(setting, name)
    else:
        check(bool(name.strip("/")), f"{setting}={name!r}: give a folder (./path) or a hub id (owner/name)")
        return name
    if is_gguf(str(path)):
        check(os.path.isfile(path), f"{setting}={shorten(name)}: no such file")  # noqa: PTH113  (as in is_local)
    else:
        check(os.path.isdir(path), f"{setting}={shorten(name)}: no such folder")  # noqa: PTH112
    return str(path.resolve())


def _locate_in_package(setting: str, name: str) -> Path:
    """Return the folder that `package:name/folder` means, without importing the package."""
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    top, *subpackages = package.split(".")
    try:
        spec = find_spec(top) if top else None  # find_spec of a dotted name would import its parent
    except ValueError:  # __main__
        spec = None
    places = (spec and spec.submodule_search_locations) or ()
    folder = next((path for place in places if os.path.isdir(path := Path(place, *subpackages))), None)  # noqa: PTH112
    if folder is None:
        raise InputError(
            f"{setting}={shorten(name)}: no package {shorten(package)} is installed "
            f"(pip install {package[:MAX_SHOWN_CHARACTERS]})"
        )
    return folder / inside


def load_named(setting: str, name: str, load: Callable[[str], Loaded], part: str = "") -> Loaded:
    """Return `load(place)` for the model `name`, or for a `part` of it; raises InputError if that fails."""
    silence_libraries()
    place = locate(setting, name)
    if is_gguf(place):
        check_gguf(f"{setting}={name!r}", place)
    elif setting == "model.name" and is_local(name) and not (Path(place) / "config.json").is_file():
        files = ", ".join(sorted(path.name for path in Path(place).glob("*.gguf"))[:3])
        hint = f"; name one of its files: {files}" if files else ""
        raise InputError(f"{setting}={name!r}: not a model's folder (no config.json){hint}")
    return load_place(f"{setting}={name!r}{f': {part}' if part else ''}", place, lambda: load(place))


def load_place(what: str, place: str, load: Callable[[], Loaded]) -> Loaded:
    """Return `load()`, in which a library reads the files of `place`; raises InputError if that fails."""
    try:
        with as_input_error(f"{what} could not be loaded"):
            return load()
    except InputError as error:
        if "trust_remote_code" in str(error.__cause__) and (files := _find_custom_code(place)):
            raise InputError(
                f"{what} needs custom code ({', '.join(files)}), which is never run: give a model that transformers "
                "itself supports"
            ) from error
        raise


@contextmanager
def as_input_error(what: str) -> Iterator[None]:
    """Turn any exception of a library into one InputError: `what`, and the library's reason.

    Libraries raise anything when they cannot read a file, even bare Exception; a Rust panic is only a BaseException.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise InputError(f"{what}: {_describe(error)}") from error
        raise


def _describe(error: BaseException) -> str:
    """Return the first line of a library's error, and the next ones as long as a line ends in a colon or comma."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[: next((i for i, line in enumerate(lines, 1) if line[-1] not in ":,"), None)])
    clear = isinstance(error, OSError | ValueError | ImportError | RuntimeError) or type(error) is Exception
    return (text if text and clear else f"{type(error).__name__}: {text}").rstrip(": ")[:MAX_REASON_CHARACTERS]


def _find_custom_code(place: str) -> list[str]:
    """Return the code files that the configurations of a folder or hub id name."""
    from transformers import PreTrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    configs: list[dict[str, Any]] = []
    with suppress(OSError, ValueError):
        configs.append(PreTrainedConfig.get_config_dict(place)[0])
    with suppress(OSError, ValueError):
        configs.append(get_tokenizer_config(place))
    files: set[str] = set()
    maps = [config.get("auto_map") for config in configs]
    for value in (value for auto_map in maps if isinstance(auto_map, dict) for value in auto_map.values()):
        names = value if isinstance(value, list) else [value]  # a tokenizer may name two, one of them None
        files |= {f"{name.rpartition('.')[0]}.py" for name in names if isinstance(name, str)}
    return sorted(files)


# Every call of transformers that could run code from a model's folder is below; none of them may.


def load_config(place: str) -> Any:
    """Load the configuration of a folder or hub id."""
    from transformers import AutoConfig

    if is_gguf(place):
        return load_gguf_config(place)
    return AutoConfig.from_pretrained(place, trust_remote_code=False)


def own_type(place: str, config: Any) -> torch.dtype:
    """Return the type of a model's weights: as its configuration or else its files say, float32 if neither does."""
    said = torch.float32 if is_gguf(place) else config.dtype or getattr(config.get_text_config(), "dtype", None)
    own = said if isinstance(said, torch.dtype) else _type_in_files(Path(place))
    return own if own in (torch.bfloat16, torch.float16) else torch.float32


def _type_in_files(folder: Path) -> torch.dtype:
    """Return the type of the first floating-point tensor in a folder's safetensors files, float32 if there is none."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            kinds = [tensors.get_slice(name).get_dtype() for name in tensors.keys()]  # noqa: SIM118  (not a mapping)
        found = next((kind for kind in kinds if kind in ("F32", "BF16", "F16")), None)
        if found is not None:
            return {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}[found]
    return torch.float32


def load_tokenizer(place: str, config: Any) -> Any:
    """Load the tokenizer of a folder or hub id; `config`: the model's."""
    from transformers import AutoTokenizer

    if is_gguf(place):
        return load_gguf_tokenizer(place)
    return AutoTokenizer.from_pretrained(place, config=config, trust_remote_code=False)


def load_image_processor(place: str, config: Any, **settings: object) -> Any:
    """Load the Pillow version of the image processor of a folder or hub id; `config`: the model's."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(place, config=config, backend="pil", trust_remote_code=False, **settings)


def build_fresh(auto: Any, config: Any, **settings: object) -> Any:
    """Return a model of class `auto` (AutoModel, ...) with fresh weights."""
    return auto.from_config(config, trust_remote_code=False, **settings)


def load_weights(auto: Any, place: str, config: Any, dtype: torch.dtype, **settings: object) -> tuple[Any, list[str]]:
    """Load a model of class `auto` in `dtype`, tensor by tensor; `settings` are passed to from_pretrained.

    Also returns the names of the modules that the files have no weights for, such as a head of another shape.
    """
    folder = Path(place)
    if is_gguf(place):
        return _load_gguf_weights(auto, place, config, dtype)
    if any(folder.glob("*.bin")) and not any(folder.glob("*.safetensors")):
        raise ValueError("its weights are in .bin files only, which can run code when loaded; give safetensors")
    model, report = auto.from_pretrained(
        place,
        config=config,
        ignore_mismatched_sizes=True,  # a fresh head
        use_safetensors=True,
        trust_remote_code=False,
        dtype=dtype,
        output_loading_info=True,
        **settings,
    )
    return model, _list_fresh(model, report)


def _load_gguf_weights(auto: Any, place: str, config: Any, dtype: torch.dtype) -> tuple[Any, list[str]]:
    """As `load_weights`, from a .gguf file."""
    place, file = split_gguf(place)
    with unpacking() as how:
        model, report = auto.from_pretrained(
            place,
            config=config,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            dtype=dtype,
            output_loading_info=True,
            **file,
            **how,
        )
    forget_packing(model)
    return model, _list_fresh(model, report)


def _list_fresh(model: Any, report: Mapping[str, Any]) -> list[str]:
    """Return the modules that the files have no weights for, by transformers' report; warn of those below the head."""
    keys = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    fresh = sorted({key.rpartition(".")[0] for key in keys} - {""})
    warn_if_fresh(model, fresh)
    return fresh


def warn_if_fresh(model: Any, fresh: list[str]) -> None:
    """Warn if modules below the head have no weights in the files; raises ValueError if none has."""
    prefix = f"{model.base_model_prefix}."
    names = {name.rpartition(".")[0] for name, _ in model.named_parameters() if name.startswith(prefix)}
    body = [name for name in fresh if name.startswith(prefix) and "pooler" not in name]
    if names and names <= set(fresh):
        raise ValueError("none of its weights have the names and shapes of its configuration")
    if body:
        more = f" and {len(body) - 3:,} more" if len(body) > 3 else ""
        shown = f"{', '.join(body[:3])}{more}"
        warnings.warn(
            f"the model's files have no weights of the right shape for {shown}: these start fresh", stacklevel=2
        )


def silence_libraries() -> None:
    """Silence what transformers and the hub log about fresh heads, torchvision and retries."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    for library in ("transformers", "huggingface_hub", "bitsandbytes"):
        logging.getLogger(library).setLevel(logging.ERROR)


def build_seeded(build: Callable[[], Loaded], seed: int) -> Loaded:
    """Return `build()` run with torch's CPU generator at `seed`; the generator's state is restored afterwards."""
    with torch.random.fork_rng(devices=[]):  # models are built on the CPU: GPUs are neither seeded nor initialised
        torch.default_generator.manual_seed(seed)
        return build()
