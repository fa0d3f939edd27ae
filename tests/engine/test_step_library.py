"""A compiled step is kept as a library: found again, and made anew if anything that it depends on is another."""

import pytest
import torch

from fedadamw.algorithms.fedadamw import FedAdamW
from fedadamw.algorithms.fedavg import FedAvg
from fedadamw.blocks.blocks import Blocks
from fedadamw.engine import step, step_library
from fedadamw.engine.states import clone_tensors
from fedadamw.engine.step import make_step
from fedadamw.engine.step_library import name_library


@pytest.fixture
def compilations(tmp_path, monkeypatch):
    """How often a library was made; they are kept in a folder of the test."""
    made, compile_ = [], step_library._compile
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(step_library, "_compile", lambda *args: made.append(args) or compile_(*args))
    return made


def assert_compiled_step_is_plain():
    found = []
    for kind in ("compiled", "plain"):
        x, algorithm = torch.arange(10.0), FedAvg()
        down = algorithm.broadcast(algorithm.server_init(x))
        local = clone_tensors(algorithm.client_start(down, ()))
        make_step(algorithm, 1.0, kind)(local, down, torch.ones(10), torch.tensor(0.1))
        found.append(local.y)
    torch.testing.assert_close(*found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of what its compiler imports
@pytest.mark.skipif(not step.has_compiler(torch.device("cpu")), reason="no C++ compiler")
def test_a_library_is_made_once_and_anew_if_it_is_damaged_or_cannot_be_kept(compilations, tmp_path, monkeypatch):
    for _ in range(2):
        assert_compiled_step_is_plain()
    assert len(compilations) == 1
    (kept,) = step_library.find_folder().glob("*.pt2")
    kept.write_bytes(b"damaged")
    for _ in range(2):
        assert_compiled_step_is_plain()
    assert len(compilations) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))  # a file, in which there can be no folder
    assert_compiled_step_is_plain()
    assert len(compilations) == 3


def test_the_name_of_a_library_changes_with_all_that_it_depends_on(monkeypatch):
    tensors = [torch.zeros(3), torch.zeros(2)]
    names = [name_library(FedAvg(), None, tensors)]
    assert names == [name_library(FedAvg(), None, [torch.ones(3), torch.ones(2)])]
    names.append(name_library(FedAvg(), 1.0, tensors))
    names.append(name_library(FedAvg(weight_decay=0.5), None, tensors))
    names.append(name_library(FedAvg(), None, tensors[::-1]))
    names.append(name_library(FedAvg(), None, [t.double() for t in tensors]))
    for model in (torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)):
        names.append(name_library(FedAdamW(blocks=Blocks.of(model)), None, tensors))
    monkeypatch.setenv("TORCHINDUCTOR_CPP_SIMDLEN", "256")
    names.append(name_library(FedAvg(), None, tensors))
    monkeypatch.setattr(torch, "__version__", "2.99")
    names.append(name_library(FedAvg(), None, tensors))
    monkeypatch.setattr(step_library, "_processor", lambda: "another one")
    names.append(name_library(FedAvg(), None, tensors))
    monkeypatch.setattr(step_library, "_source_digest", lambda: "of another version")
    names.append(name_library(FedAvg(), None, tensors))
    assert len(set(names)) == len(names)


def test_an_algorithm_of_another_package_is_not_kept():
    class Own(FedAvg):
        def client_step(self, local, down, g, lr):
            return super().client_step(local, down, 2 * g, lr)

    assert not step_library.can_keep(Own())
    assert step_library.can_keep(FedAvg())
