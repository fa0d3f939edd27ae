"""The charts' library, as the one script that every page carries with it."""

import contextlib
import os
import uuid
from importlib.metadata import version
from pathlib import Path

import vl_convert


def library() -> str:
    """Vega-Lite and what draws it. Putting it together takes 2 s of a processor: it is kept for the next page."""
    kept = cache() / f"vega-embed-{version('vl-convert-python')}.js"
    try:
        return kept.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        script: str = vl_convert.javascript_bundle(None)  # type: ignore[arg-type]  # the stub forgets the default
    aside = kept.with_name(f"{kept.name}.{uuid.uuid4().hex}")  # processes of a study may write it at once
    with contextlib.suppress(OSError):  # no home, no disk: it is made again next time
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_text(script, encoding="utf-8")
            os.replace(aside, kept)
        finally:
            aside.unlink(missing_ok=True)
    return script


def cache() -> Path:
    """Where this user's caches are, by the convention of XDG."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fedadamw"
