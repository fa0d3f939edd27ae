"""The charts' library, as the one script that every page carries with it."""

import contextlib
import os
import uuid
from importlib.metadata import version
from pathlib import Path

import vl_convert

END = "\n// the end\n"  # what was kept is used only where it is whole


def library() -> str:
    """Vega-Lite and what draws it. Putting it together takes 2 s of a processor: it is kept for the next page."""
    kept = _cache()
    if kept is not None:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if (script := kept.read_text(encoding="utf-8")).endswith(END):
                return script
    script = vl_convert.javascript_bundle(None) + END  # type: ignore[arg-type]  # the stub forgets the default
    if kept is not None:
        _keep(script, kept)
    return script


def _keep(script: str, path: Path) -> None:
    """Write it aside and rename it, since processes of a study may do so at once; without a disk it is made again."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_text(script, encoding="utf-8")
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def _cache() -> Path | None:
    """A file among this user's caches, by the convention of XDG; None for a user without a home."""
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return None
    return caches / "fedadamw" / f"vega-embed-{version('vl-convert-python')}.js"
