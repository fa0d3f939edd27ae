"""A run that cannot fit is refused before anything is loaded, with what to change."""

import signal
import warnings

import numpy as np
import pytest
from support import image_files, tiny_models
from support.sequences import batch_of

from fedadamw.plan.bound import bound
from fedadamw.plan.refusal import check_fits
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load
from fedadamw.study.child import run_child

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


def test_a_run_of_a_study_is_refused_too(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr("fedadamw.plan.room.free_bytes", lambda: 5 * 10**9)
    monkeypatch.setattr("fedadamw.study.child.end_with_parent", lambda: None)
    monkeypatch.setattr("os.dup2", lambda *_: None)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as ended:
            run_child(load("digits", MANY[2::2]).to_yaml(), str(tmp_path / "run"))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert ended.value.code == 1
    assert capfd.readouterr().err.startswith("this run needs ")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["log.txt"]


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


@pytest.mark.parametrize("resample", [0, 2, 3], ids=["nearest", "bilinear", "bicubic"])
def test_a_model_that_resizes_its_images_is_planned_and_then_runs(resample, monkeypatch, tmp_path):
    side = 24 + 8 * resample
    processor = {"image_processor_type": "ViTImageProcessor", "size": side, "resample": resample}
    folder = image_files.vit(tmp_path / "vit", processor, side=side)
    experiment = load("digits", [f"model={folder}", "device=cpu", "data.image_size=null", "data.max_train=100"])
    monkeypatch.setattr("fedadamw.plan.refusal.bound", lambda _: 10**18)
    with warnings.catch_warnings(category=UserWarning, action="error"):
        check_fits(experiment, 1)
    inputs, _ = batch_of(prepare(experiment).task, np.arange(3))
    assert inputs.shape == (3, 3, side, side)
