"""Vega-Lite as one script, which every page contains."""

import contextlib
import os
import uuid
from importlib.metadata import version
from pathlib import Path

import vl_convert

END = "\n// the end\n"  # a cached script without it is incomplete


def vega_script() -> str:
    """Return Vega-Lite and vega-embed as JavaScript. Bundling takes 2 s, so it is cached for the next page."""
    cache = _cache_path()
    if cache is not None:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if (script := cache.read_text(encoding="utf-8")).endswith(END):
                return script
    script = vl_convert.javascript_bundle(None) + END  # type: ignore[arg-type]  # the stub forgets the default
    if cache is not None:
        _write_cache(script, cache)
    return script


def _write_cache(script: str, path: Path) -> None:
    """Write the script to a new file and rename it, since runs of a study may do so at once; errors are ignored."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_text(script, encoding="utf-8")
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def _cache_path() -> Path | None:
    """Return the file in the user's cache folder (XDG); None if the user has no home."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return None
    return caches / "fedadamw" / f"vega-embed-{version('vl-convert-python')}.js"
