"""docs/theory.md says what the committed records say, and has every picture."""

import re

from support.checkout import ROOT

from benchmarks.pages import theory

PAGE = theory.PAGE.read_text()


def test_the_sections_are_written_from_the_committed_records():
    assert theory.fill(PAGE) == PAGE, "run python -m benchmarks.pages.theory"
    assert {part["name"] for part in theory.PART.finditer(PAGE)} == set(theory.SECTIONS)


def test_every_picture_is_drawn_by_the_script():
    shown = set(re.findall(r"\(theory/([\w-]+)\.svg\)", PAGE))
    assert shown == {path.stem for path in (ROOT / "docs" / "theory").glob("*.svg")}
    assert shown == set(theory.pictures())
