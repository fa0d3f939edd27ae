"""A run that cannot fit is refused before anything is loaded, with what to change."""

import pytest
from support import tiny_models

from fedadamw.plan.bound import bound
from fedadamw.plan.refusal import check_fits
from fedadamw.settings.load import load

MANY = [
    "digits",
    "-s",
    "algorithm.name=scaffold",
    "-s",
    "model=vit-tiny",
    "-s",
    "data.image_size=32",
    "-s",
    "device=cpu",
]


def test_a_run_is_refused_in_one_line_that_says_what_to_change(run_main, monkeypatch, tmp_path):
    monkeypatch.setattr("fedadamw.plan.room.free_bytes", lambda: 5 * 10**9)
    out = ["--out", str(tmp_path / "run")]
    refused = run_main("run", *MANY, *out)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: this run needs ")
    assert "client_memory=disk" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "more", ["lora.aggregate=residual", "lora.modules_to_save=[lm_head]", "lora.rank_pattern={q_proj: 64}"]
)
def test_the_bound_holds_what_is_kept_besides_adapters(more, tmp_path):
    tiny_models.folder(tmp_path / "llama", "llama")
    settings = [f"model={tmp_path / 'llama'}", "data.max_length=8", "lora.target_modules=null", "lora.r=1"]
    plain, larger = (bound(load("small/instruct-smollm2", s)) for s in (settings, [*settings, more]))
    assert larger > plain


def test_a_run_that_cannot_be_planned_is_not_refused(monkeypatch):
    def look(*_):
        raise RuntimeError("a number that is not there\nand more")

    monkeypatch.setattr("fedadamw.plan.room.free_bytes", lambda: 10**6)
    monkeypatch.setattr("fedadamw.plan.rehearsal._rehearse", look)
    with pytest.warns(UserWarning, match=r"'vit-micro' cannot be planned \(RuntimeError: a number that is not there\)"):
        check_fits(load("digits", ["device=cpu", "algorithm.name=scaffold"]), 1)
