"""The checkout, and the data beside it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SHARED = ROOT.parent / "shared" / "data"


def need(path: Path) -> Path:
    """`path` of the data beside the checkout, or a skip that says so."""
    if not path.exists():
        pytest.skip(f"{path.relative_to(ROOT.parent)} is not beside this checkout")
    return path
