"""The Vega-Lite script of pages is bundled once and cached; a damaged cache is replaced."""

import pwd

import pytest

from fedadamw.report import vega


def test_the_library_is_bundled_once_and_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    script = vega.vega_script()
    assert "window.vegaEmbed" in script
    assert [path.read_text() for path in (tmp_path / "fedadamw").iterdir()] == [script]
    monkeypatch.delattr(vega.vl_convert, "javascript_bundle")
    assert vega.vega_script() == script


@pytest.mark.parametrize("content", [b"", b"window.vegaEm", b"\xff\xfe"])
def test_an_incomplete_cached_file_is_rebuilt(content, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    script = vega.vega_script()
    (path,) = (tmp_path / "fedadamw").iterdir()
    path.write_bytes(content)
    assert vega.vega_script() == script
    assert path.read_text() == script


def test_the_library_is_available_without_a_cache(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "window.vegaEmbed" in vega.vega_script()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert "window.vegaEmbed" in vega.vega_script()
