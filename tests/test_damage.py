"""A run's folder that is damaged, or another's, is refused and kept as it is."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
from conftest import SHORT, command

from fedadamw.checkpoint import CheckpointError, read, write


def damaged_copy(finished: Path, tmp_path: Path, damage) -> tuple[Path, bytes]:
    """A copy of the run cut back to before its end, with a checkpoint that `damage` changed."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "checkpoint").mkdir()
    for name in ("config.yaml", "manifest.json", "metrics.jsonl"):
        (out / name).write_bytes((finished / name).read_bytes())
    content = damage((finished / "checkpoint" / "state.safetensors").read_bytes())
    (out / "checkpoint" / "state.safetensors").write_bytes(content)
    return out, content


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile-was-here",)


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c[: len(c) // 2], "damaged"),
        (flipped, "does not match its digest"),
        (lambda c: b"", "damaged"),
        (lambda c: pickle.dumps(Hostile()), "damaged, or no safetensors file"),
    ],
)
def test_a_damaged_or_hostile_checkpoint_is_refused_and_kept(finished, tmp_path, typed, monkeypatch, damage, message):
    out, content = damaged_copy(finished, tmp_path, damage)
    before = (out / "metrics.jsonl").read_bytes()
    monkeypatch.chdir(tmp_path)
    done = typed("run", "--resume", "--out", str(out))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert (out / "checkpoint" / "state.safetensors").read_bytes() == content
    assert (out / "metrics.jsonl").read_bytes() == before
    assert not (tmp_path / "hostile-was-here").exists()


def test_a_foreign_checkpoint_is_refused_and_kept(finished, tmp_path):
    out, content = damaged_copy(finished, tmp_path, lambda content: content)
    other = (out / "config.yaml").read_text().replace("alpha: 0.5", "alpha: 0.25")
    (out / "config.yaml").write_text(other)
    done = command("run", "--resume", "--out", str(out))
    assert done.returncode == 2
    assert "belongs to a run with other settings" in done.stderr
    assert (out / "checkpoint" / "state.safetensors").read_bytes() == content


def test_damaged_records_are_refused_and_kept(finished, tmp_path, typed):
    out, _ = damaged_copy(finished, tmp_path, lambda content: content)
    good = (out / "metrics.jsonl").read_bytes()
    for content, message in ((good.replace(b'"round": 4', b'"round": 9'), "line 4"), (b"{}\n" + good, "line 1")):
        (out / "metrics.jsonl").write_bytes(content)
        done = typed("run", "--resume", "--out", str(out))
        assert done.returncode == 2
        assert f"{message} is not the record of round" in done.stderr
        assert (out / "metrics.jsonl").read_bytes() == content
    (out / "metrics.jsonl").write_bytes(good)
    (out / "checkpoint" / "state.safetensors").unlink()
    done = typed("run", "--resume", "--out", str(out))
    assert done.returncode == 2
    assert "is missing, though" in done.stderr
    assert (out / "metrics.jsonl").read_bytes() == good


def test_an_upload_is_not_a_checkpoint(tmp_path):
    write(tmp_path / "a", "upload", {}, {})
    with pytest.raises(CheckpointError, match="no checkpoint of fedadamw"):
        read(tmp_path / "a", "checkpoint")
    with pytest.raises(CheckpointError, match="no such file"):
        read(tmp_path / "b", "checkpoint")


def test_a_run_is_never_overwritten(finished, tmp_path, typed):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = (out / "metrics.jsonl").read_bytes()
    done = typed("run", "digits", *SHORT, "--out", str(out))
    assert done.returncode == 2
    assert "holds a run already; go on with --resume" in done.stderr
    done = typed("run", "digits", *SHORT, "-s", "seed=1", "--out", str(out), "--resume")
    assert done.returncode == 2
    assert "was run with other settings" in done.stderr
    assert (out / "metrics.jsonl").read_bytes() == before
