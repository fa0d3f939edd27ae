"""A compiled step is kept as a library: found again, and made anew if anything that it depends on is another."""

import errno
import zipfile

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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(not step.has_compiler(torch.device("cpu")), reason="no C++ compiler")
@pytest.mark.usefixtures("compilations")
def test_a_library_of_a_first_round_serves_the_next_ones_and_other_shapes():
    """In the first round Delta_G, m and v are one tensor of zeros."""
    found = []
    for kind in ("compiled", "plain"):
        model = torch.nn.Linear(3, 2)
        algorithm = FedAdamW(blocks=Blocks.of(model), share="vm")
        take = make_step(algorithm, None, kind)
        for d in (8, 20_000):
            server, lr = algorithm.server_init(torch.linspace(-1, 1, d)), torch.tensor(0.01)
            for g in torch.randn(3, d, generator=torch.Generator().manual_seed(0)):
                down = algorithm.broadcast(server)
                local = clone_tensors(algorithm.client_start(down, ()))
                take(local, down, g, lr)
                up, _ = algorithm.client_finish(local, down, lr)
                server = algorithm.server_update(server, up, lr, torch.tensor(1.0))
            found.append(server)
    torch.testing.assert_close(found[:2], found[2:], rtol=1e-4, atol=1e-4)


def zipped(path, content):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("step.so", content)


def test_a_library_with_a_changed_byte_is_not_loaded(tmp_path, monkeypatch):
    """Loading it may end the process."""
    loaded, path = [], tmp_path / "step.pt2"
    monkeypatch.setattr(step_library, "_open", loaded.append)
    zipped(path, b"machine code")
    step_library._open_whole(path)
    assert loaded == [path]
    path.write_bytes(path.read_bytes().replace(b"machine", b"machinE"))
    with pytest.raises(zipfile.BadZipFile):
        step_library._open_whole(path)
    assert loaded == [path]


def test_a_library_that_cannot_be_kept_leaves_no_file(tmp_path, monkeypatch):
    def fill_disk(made, beside):
        beside.write_bytes(b"part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(step_library.shutil, "copyfile", fill_disk)
    step_library._keep(tmp_path / "made.pt2", tmp_path / "kept.pt2")
    assert list(tmp_path.iterdir()) == []


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
