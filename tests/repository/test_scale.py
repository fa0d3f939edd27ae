"""What ranks send is counted call by call, and shares are compared without a clock."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support.checkout import ROOT
from torch import nn

from benchmarks.common import records
from benchmarks.measure import scale
from benchmarks.measure.scale_parts import costs, shares, traffic
from benchmarks.pages import published as published_page
from benchmarks.pages import scale as scale_page
from benchmarks.pages import scale_model


def test_calls_are_counted_by_operation_and_left_as_they_were():
    with traffic.record_calls() as calls:
        with pytest.raises(ValueError, match="not been initialized"):
            dist.all_reduce(torch.zeros(3))
        with pytest.raises(ValueError, match="not been initialized"):
            dist.broadcast(torch.zeros(2, dtype=torch.float64), 0)
        assert calls == [("all_reduce", 12), ("broadcast", 16)]
    assert traffic.add_up(calls) == {"all_reduce": {"calls": 1, "bytes": 12}, "broadcast": {"calls": 1, "bytes": 16}}
    assert dist.all_reduce.__module__.startswith("torch.distributed")


def test_one_rank_sends_nothing(monkeypatch):
    monkeypatch.setattr(traffic, "ROUNDS", 2)
    monkeypatch.setattr(traffic, "CLIENTS", 2)
    found = traffic.run_job("fedadamw")
    assert found["round"] == found["evaluation"] == found["start"] == traffic.add_up([])
    assert len(found["losses"]) == 2 * len(found["digests"]) == 2
    assert found["waited_share"] == [0.0, 0.0]
    json.dumps(found)


def run(**changes):
    return {"losses": [1.0, 0.5], "digests": ["a", "a"], **changes}


def test_other_bits_on_a_rank_or_other_losses_stop_the_benchmark():
    scale.check("job", {"1": run(digests=["b"]), "2": run(losses=[1.00001, 0.5])})
    with pytest.raises(SystemExit, match="the 2 ranks ended with different models"):
        scale.check("job", {"1": run(), "2": run(digests=["a", "b"])})
    with pytest.raises(SystemExit, match="2 ranks have losses"):
        scale.check("job", {"1": run(), "2": run(losses=[1.01, 0.5])})


def test_the_engines_shares_are_near_the_best_possible():
    sizes = np.random.default_rng(0).geometric(0.003, shares.CLIENTS)
    for ranks in (2, 4):
        found = shares.compare(sizes, 20, ranks)
        ours = found["most samples first, to the rank with the least"]
        assert found["least possible"] <= ours < 1.02 * found["least possible"]
        assert found["in order"] > 1.1


def test_operations_are_counted_without_weights():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 4, bias=False), nn.Linear(4, 2, bias=False)
            self.first.requires_grad_(False)

        def forward(self, x):
            return type("Out", (), {"logits": self.second(self.first(x))})

    with torch.device("meta"):
        found = costs.count(Model(), torch.zeros(1, 8))
    assert (found["parameters"], found["trained"]) == (40, 8)
    assert found["forward"] == 2 * 40
    assert found["forward_backward"] == 2 * 40 + 2 * 8, "the first layer needs neither gradient"


def test_the_pages_are_generated_from_the_committed_records():
    page = scale_page.page(records.read_newest("scale", "cpu"))
    assert page == (ROOT / "docs" / "scale.md").read_text(), "run python -m benchmarks.pages.scale"
    section = published_page.section()
    assert section in (ROOT / "docs" / "performance.md").read_text(), "run python -m benchmarks.pages.performance"


def test_the_pages_model_is_a_ring():
    link = scale_model.Link(1e9, 1e-3, "")
    assert scale_model.ring(64e6, 0, link) == pytest.approx(2 * 63 * 1e6 / 1e9), "each of 64 parts goes round twice"
    assert scale_model.ring(0, 3, link) == pytest.approx(3 * 126e-3)


def test_a_record_of_a_gpu_stands_beside_what_others_published(monkeypatch):
    run = {"total_s": 61.0, "accuracy": [0.1, 0.7]}
    algorithms = {"fedavg": run, "fedadamw": {"failed": "CUDA error"}}
    record = {"device": "cuda:0: NVIDIA H100", "commit": "abc", "jobs": {"cifar10-iid": {"algorithms": algorithms}}}
    monkeypatch.setattr(published_page.records, "read_newest", lambda *_: record)
    section = published_page.section()
    assert "| `cifar10-iid` | fedadamw, fedavg | we | 1 min 01 s | 70% | cuda:0: NVIDIA H100 |" in section
    assert "| we | failed: CUDA error | - |" in section
    assert "has not run on a GPU" not in section


@pytest.mark.slow
@pytest.mark.parametrize(("job", "summed", "passed_on"), [("fedadamw", 1, 0), ("scaffold", 2, 2 * traffic.CLIENTS)])
def test_two_ranks_sum_what_a_client_sends_and_move_its_memory(job, summed, passed_on):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "benchmarks.measure.scale", "--one", job]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True, timeout=300)
    found = json.loads(done.stdout.splitlines()[-1])
    for operation, vectors in (("all_reduce", summed), ("broadcast", passed_on)):
        sent = found["round"][operation]["bytes"]
        assert 4 * vectors * found["d"] <= sent <= 1.02 * 4 * vectors * found["d"], operation
    assert len(set(found["digests"])) == 1
