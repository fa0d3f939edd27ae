"""A run that cannot fit is refused before anything is loaded, with what to change."""

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
