"""Models in .gguf files, as llama.cpp has them: configuration, tokenizer, chat template and weights in one file.

transformers reads them and unpacks the weights. A file holds numbers and words only, so reading it runs no code; its
chat template is rendered in a sandbox, like that of any tokenizer.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fedadamw.validation import check, missing_extra_error

SUFFIX = ".gguf"
MAGIC = b"GGUF"  # the first bytes of every such file


def is_gguf(name: str) -> bool:
    """Whether a model's name means a .gguf file, on this machine or the hub."""
    return name.lower().endswith(SUFFIX) and not os.path.isdir(name)  # noqa: PTH112  (raises nothing, as Path.is_dir)


def is_local_gguf(name: str) -> bool:
    """Whether it means one on this machine. On the hub it is owner/name/FILE.gguf; a file of that path comes first."""
    return is_gguf(name) and (name.count("/") < 2 or os.path.isfile(name))  # noqa: PTH113


def split_gguf(place: str) -> tuple[str, dict[str, str]]:
    """Return what `from_pretrained` takes for a place: the folder or hub id, and which .gguf file of it, {} for none.

    place: an absolute path, or a hub id with or without a file.
    """
    if not is_gguf(place):
        return place, {}
    path = Path(place)
    if path.is_absolute():
        return str(path.parent), {"gguf_file": path.name}
    owner, name, file = place.split("/", 2)
    return f"{owner}/{name}", {"gguf_file": file}


def check_gguf(what: str, place: str) -> None:
    """Raise InputError if a library that reads .gguf files is missing, or if the file of that absolute path is none."""
    for library in ("gguf", "accelerate"):
        if find_spec(library) is None:
            raise missing_extra_error(f"{what}: to read a {SUFFIX} file needs {library}", "gguf")
    if Path(place).is_absolute():
        with open(place, "rb") as file:
            check(file.read(len(MAGIC)) == MAGIC, f"{what}: is no GGUF file (it does not begin with the bytes GGUF)")


def load_gguf_config(place: str) -> Any:
    """Load the configuration of a .gguf file."""
    changed = os.stat(place).st_mtime_ns if is_local_gguf(place) else 0  # noqa: PTH116
    return deepcopy(_read_config(place, changed))


@lru_cache(maxsize=4)
def _read_config(place: str, changed: int) -> Any:
    """Read it once while the file stays the same: transformers walks over all words of the file, for two seconds."""
    from transformers import AutoConfig

    folder, file = split_gguf(place)
    with reading_fast():
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, **file)


def load_gguf_tokenizer(place: str) -> Any:
    """Load the tokenizer of a .gguf file.

    Not by AutoTokenizer, which reads the file a second time for a class that it does not use.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    folder, file = split_gguf(place)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, **file)
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    own = [token for token in rules["added_tokens"] if token["id"] < tokenizer.vocab_size]
    if len(own) < len(rules["added_tokens"]):  # transformers adds GPT-2's <|endoftext|>, for which a model has no row
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps({**rules, "added_tokens": own}))
    return tokenizer


@contextmanager
def reading_fast() -> Iterator[None]:
    """Let transformers read a .gguf file in a third of the time.

    It walks over hundreds of thousands of words in a mapped file, each slice of which NumPy makes an object of a slow
    class, and builds the table of the architecture's tensors again for each module.
    """
    library: Any = import_module("gguf")
    usual = library.GGUFReader, library.get_tensor_name_map

    def hold(reader: object, name: str, value: object) -> None:
        object.__setattr__(reader, name, np.asarray(value) if name == "data" else value)

    plain = type("PlainReader", (usual[0],), {"__setattr__": hold})  # has the mapped file as a plain array
    library.GGUFReader, library.get_tensor_name_map = plain, cache(usual[1])
    try:
        yield
    finally:
        library.GGUFReader, library.get_tensor_name_map = usual


@contextmanager
def unpacking() -> Iterator[dict[str, Any]]:
    """Give the arguments with which `from_pretrained` unpacks all weights, without a bar of progress of its own."""
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import quantization_config

    packed = getattr(quantization_config, "GgufConfig", None)  # newer transformers keep some architectures packed
    bar = getattr(reader, "tqdm", None)
    reader.tqdm = lambda items, **_: items
    try:
        with reading_fast():
            yield {} if packed is None else {"quantization_config": packed(dequantize=True)}
    finally:
        reader.tqdm = bar


def forget_packing(model: Any) -> None:
    """Make an unpacked model one like any other: transformers notes that it was quantised, and would not save it."""
    for name in ("hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            delattr(model, name)
    model.is_quantized = False
    for config in {id(c): c for c in (model.config, model.config.get_text_config(decoder=True))}.values():
        if hasattr(config, "quantization_config"):
            delattr(config, "quantization_config")
