"""The charts' library in a page: put together once, and again where what was kept is of no use."""

import pwd

import pytest

from fedadamw.report import vega as library


def test_the_library_is_bundled_once_and_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    script = library.library()
    assert "window.vegaEmbed" in script
    assert [path.read_text() for path in (tmp_path / "fedadamw").iterdir()] == [script]
    monkeypatch.delattr(library.vl_convert, "javascript_bundle")
    assert library.library() == script


@pytest.mark.parametrize("kept", [b"", b"window.vegaEm", b"\xff\xfe"])
def test_an_incomplete_cached_file_is_rebuilt(kept, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    script = library.library()
    (path,) = (tmp_path / "fedadamw").iterdir()
    path.write_bytes(kept)
    assert library.library() == script
    assert path.read_text() == script


def test_the_library_is_available_without_a_cache(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "window.vegaEmbed" in library.library()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert "window.vegaEmbed" in library.library()
