"""Training and held-out data given in Python: tensors, or anything with a length and an index."""

import hashlib
import random
from abc import ABC, abstractmethod
from collections import UserDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from fedadamw.task import copy_to
from fedadamw.validation import InputError, check, shorten

Collate = Callable[[list[Any]], Any]
DIGESTED = 8  # parts of a dataset, whose first samples are read for its fingerprint
MAX_CLASSES = 1000  # from which integer targets are not taken for classes


class Rows(ABC):
    """Samples by number; a `data.samples.Samples`."""

    resident: bool  # see task.Task
    in_turn: bool = False  # see task.Task
    has_seeds: bool  # whether reading a training sample may draw random numbers
    labels: np.ndarray = np.zeros(0, np.int64)  # (n,) the samples' classes; (0,) if they are not known
    groups = None
    fingerprint: str

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; none if they are not known."""
        return tuple(map(str, range(int(self.labels.max()) + 1))) if len(self.labels) else ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, samples: Tensor, seeds: Tensor | None = None) -> Any:
        """Return the batch of these samples (n,) on the device. seeds: (n,) for what each draws at random."""


class TensorRows(Rows):
    """Rows of tensors: a batch is a tuple with the same rows of each."""

    has_seeds = False

    def __init__(self, tensors: Sequence[Tensor], device: torch.device, *, resident: bool) -> None:
        self.device, self.resident = device, resident
        self.fingerprint = digest_tensors(tensors)
        self.labels = _find_labels(tensors[-1]) if len(tensors) > 1 else self.labels
        self.tensors = [t.to(device) for t in tensors] if resident else list(tensors)

    def __len__(self) -> int:
        return len(self.tensors[0])

    def take(self, samples: Tensor, seeds: Tensor | None = None) -> Any:
        rows = [t[samples] for t in self.tensors]
        return tuple(rows if self.resident else (copy_to(t, self.device) for t in rows))


class DatasetRows(Rows):
    """Samples of a map-style dataset, put together by a collate function.

    What a sample draws from the global generators of torch, numpy and random depends on its seed alone, so a run
    repeats and resumes exactly. The samples are read in the main thread, between the steps.
    """

    has_seeds = True
    resident = False
    in_turn = True  # the seeds of `take` must not meet what the model draws

    def __init__(self, dataset: Any, collate: Collate, device: torch.device) -> None:
        self.dataset, self.collate, self.device = dataset, collate, device
        self.fingerprint = self._digest_some()

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, samples: Tensor, seeds: Tensor | None = None) -> Any:
        drawn = samples if seeds is None else seeds
        with _own_generators():
            rows = [self._read(*pair) for pair in zip(samples.tolist(), drawn.tolist(), strict=True)]
            batch = self.collate(rows)
        batch = dict(batch) if isinstance(batch, UserDict) else batch  # such as the BatchEncoding of a tokenizer
        return tree_map_only(Tensor, lambda t: copy_to(t, self.device), batch)

    def _digest_some(self) -> str:
        """Return a digest of the dataset's type and length, and of some samples: of those that read the same twice."""
        kind, count = type(self.dataset), len(self.dataset)
        digest = hashlib.sha256(f"{kind.__module__}.{kind.__qualname__} {count}".encode())
        with _own_generators():
            for sample in sorted({k * (count - 1) // DIGESTED for k in range(DIGESTED + 1)}):
                once, again = (digest_tensors(_find_tensors(self._read(sample, 0))) for _ in range(2))
                digest.update(once.encode() if once == again else b"")
        return digest.hexdigest()[:16]

    def _read(self, sample: int, seed: int) -> Any:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        return self.dataset[sample]


@contextmanager
def _own_generators() -> Iterator[None]:
    """A block that may seed the global generators: they are put back at its end."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def open_rows(name: str, data: Any, collate: Collate | None, device: torch.device, *, resident: bool) -> Rows:
    """Return `data` as rows; raises InputError if it is nothing that has rows. name: `train` or `test`, for errors."""
    if isinstance(data, DataLoader):
        collate, data = collate or data.collate_fn, data.dataset
    if type(data) is TensorDataset and collate in (None, default_collate):  # a subclass may transform what it reads
        data = data.tensors
    if isinstance(data, Tensor | np.ndarray):
        data = (data,)
    if isinstance(data, tuple | list) and data and all(isinstance(part, Tensor | np.ndarray) for part in data):
        tensors = _check_tensors(name, data)
        if collate in (None, default_collate):
            return TensorRows(tensors, device, resident=resident)
        data = TensorDataset(*tensors)
    _check_dataset(name, data)
    return DatasetRows(data, collate or default_collate, device)


def _check_tensors(name: str, parts: Sequence[Any]) -> list[Tensor]:
    """Return tensors with the same number of rows; raises InputError if they are not."""
    tensors = [part if isinstance(part, Tensor) else _to_tensor(name, part) for part in parts]
    shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
    same = all(t.dim() > 0 and len(t) == len(tensors[0]) for t in tensors)
    check(same, f"{name}: tensors of shapes {shapes}; the first dimension of all is the samples'")
    check(len(tensors[0]) > 0, f"{name}: has no samples")
    return tensors


def _to_tensor(name: str, array: np.ndarray) -> Tensor:
    """Return a contiguous array as a tensor without a copy, unless it is read-only."""
    check(array.dtype.kind in "biufc", f"{name}: an array of {array.dtype} holds no numbers; encode it first")
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _check_dataset(name: str, data: Any) -> None:
    """Raise InputError unless `data` has a length and an index."""
    hint = "give (inputs, targets) tensors, a map-style dataset, or a DataLoader of one"
    is_map = hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, dict | str)
    if isinstance(data, IterableDataset) or not is_map:
        raise InputError(f"{name}: {shorten(type(data).__name__)} has no samples by number; {hint}")
    dataset: Dataset[Any] = data
    nested = isinstance(data, tuple | list) and all(isinstance(part, list) and part for part in data)
    check(not nested or len(data) > 3, f"{name}: lists of numbers are no tensors; {hint}")
    check(len(dataset) > 0, f"{name}: has no samples")  # type: ignore[arg-type]  # it has a length


def _find_tensors(sample: Any) -> list[Tensor]:
    """Return what is a number, an array or a tensor in a sample."""
    leaves = tree_leaves(dict(sample) if isinstance(sample, UserDict) else sample)
    arrays = [leaf.numpy() if isinstance(leaf, Tensor) else np.asarray(leaf) for leaf in leaves if _is_number(leaf)]
    return [torch.from_numpy(np.array(array)) for array in arrays]


def _is_number(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.device.type == "cpu" and leaf.dtype != torch.bfloat16 and not leaf.is_sparse
    return isinstance(leaf, np.ndarray | np.number | int | float) and np.asarray(leaf).dtype.kind in "biufc"


def digest_tensors(tensors: Sequence[Tensor]) -> str:
    """Return a digest of every number."""
    digest = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{flat.dtype} {tuple(flat.shape)}".encode())
        digest.update(flat.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _find_labels(targets: Tensor) -> np.ndarray:
    """Return targets (n,) that are classes as int64; (0,) for others."""
    integers = targets.dim() == 1 and not targets.is_floating_point() and not targets.is_complex()
    if not integers or targets.min() < 0 or targets.max() >= MAX_CLASSES:
        return np.zeros(0, np.int64)
    return targets.detach().cpu().numpy().astype(np.int64)
