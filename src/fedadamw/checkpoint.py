"""Tensors and their meaning in one safetensors file, written atomically and checked when read.

One file, so that tensors and round can never disagree; written aside, flushed to disk, then renamed over the old
one, so that a reader finds the old or the new one whole. A digest in the header finds damage.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedadamw.validation import InputError

FORMAT = "fedadamw-1"


class CheckpointError(InputError):
    """A file that is missing, damaged, or not what it should be."""


def write_atomically(path: Path, content: bytes) -> None:
    """`content` to `path`: after a crash the file holds the old or the new content, whole."""
    aside = path.with_name(path.name + ".new")
    with open(aside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write(path: Path, kind: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Tensors and JSON facts to `path`. The same content gives the same bytes."""
    own = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    header = {"format": FORMAT, "kind": kind, "facts": json.dumps(dict(facts), sort_keys=True)}
    header["digest"] = _digest(own, header)
    write_atomically(path, save({name: t.clone() for name, t in own.items()}, metadata=header))


def read(path: Path, *kinds: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a file that `write` wrote with one of these `kinds`; CheckpointError otherwise."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, or no safetensors file ({error})") from None
    if header.get("format") != FORMAT or header.get("kind") not in kinds:
        raise CheckpointError(f"{path}: a safetensors file, but no {' or '.join(kinds)} of fedadamw (format {FORMAT})")
    if header.get("digest") != _digest(tensors, header):
        raise CheckpointError(f"{path}: damaged, its content does not match its digest")
    return tensors, json.loads(header["facts"])


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for part in (header["format"], header["kind"], header["facts"]):
        digest.update(part.encode() + b"\0")
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
