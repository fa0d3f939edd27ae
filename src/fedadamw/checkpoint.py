"""Tensors and JSON metadata in one safetensors file, written atomically and verified when read.

One file, so that tensors and metadata always agree. It is written under another name, flushed to disk and then renamed
over the old one, so a reader gets either the complete old file or the new one. A digest in the header detects damage.
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

from fedadamw.io.disk import report_full_disk
from fedadamw.validation import InputError

FORMAT = 1  # version of the metadata and of the tensors' names
HEADER = "fedadamw"  # the only key of the safetensors metadata


class CheckpointError(InputError):
    """A file is missing, damaged, or of another kind."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`: a crash or a full disk leaves the complete old content or the new."""
    temporary = path.with_name(path.name + ".new")
    try:
        with report_full_disk(path), open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open folders
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write(path: Path, kind: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON `facts` to `path`; the same content gives the same bytes."""
    copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    header = {"format": FORMAT, "kind": kind, "facts": dict(facts)}
    header["digest"] = _digest(copies, header)
    # one key only: the order in which safetensors writes several differs between processes
    write_atomically(path, save(copies, metadata={HEADER: json.dumps(header, sort_keys=True)}))


def read(path: Path, *kinds: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and facts from a file that `write` made with one of these `kinds`.

    Raises CheckpointError if the file is missing, damaged, or of another kind or format.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        about = dict(json.loads(header.get(HEADER, "{}")))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged, or not a safetensors file ({error})") from None
    if about.get("format") != FORMAT or about.get("kind") not in kinds:
        raise CheckpointError(f"{path}: a safetensors file, but not a fedadamw {' or '.join(kinds)} (format {FORMAT})")
    digest = about.pop("digest", None)
    if digest != _digest(tensors, about):
        raise CheckpointError(f"{path}: damaged: its content does not match its digest")
    facts = about.get("facts")
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path}: has no metadata about its tensors")
    return tensors, facts


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        if t.numel():  # torch cannot view an empty tensor that came from numpy as bytes
            digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
