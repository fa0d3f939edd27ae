"""The Chinese pages have what the English ones have, and follow when these change."""

import json
import re

import pytest
from support.checkout import ROOT

from docs.translation import FENCE, HEADING, LANGUAGE, RECORD, all_differences, differences, pairs

DOCS = ROOT / "docs"
PAGES = pairs()
HAN = re.compile(r"[\u4e00-\u9fff]")


def test_what_a_new_reader_needs_is_translated():
    english = {str(page) for page in PAGES}
    pages = {"README.md", "docs/quickstart.md", "docs/adding-an-algorithm.md", "docs/algorithms/fedadamw.md"}
    pages |= {str(page.relative_to(ROOT)) for page in (DOCS / "tutorials").glob("*.md")}
    assert pages <= english
    assert [str(page) for page in PAGES if not (ROOT / page).exists()] == []


def test_the_chinese_pages_say_what_the_english_ones_say():
    """If an English page changed: change the Chinese one, then run `python docs/translation.py --accept`."""
    assert all_differences() == {}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_each_page_links_to_its_other_language(page):
    for here, there in ((page, PAGES[page]), (PAGES[page], page)):
        links = [found for line in (ROOT / here).read_text().splitlines()[:8] for found in LANGUAGE.findall(line)]
        assert len(links) == 1, here
        target = links[0].partition("(")[2].rstrip(")")
        assert ((ROOT / here).parent / target).resolve() == ROOT / there


@pytest.mark.parametrize("page", PAGES.values(), ids=str)
def test_every_paragraph_is_in_chinese(page):
    text = LANGUAGE.sub("", FENCE.sub("", (ROOT / page).read_text()))
    for paragraph in HEADING.sub("", text).split("\n\n"):
        plain = re.sub(r"`[^`]+`|\$[^$]+\$|\*\*|[\W\d_]", "", paragraph)
        assert not plain or HAN.search(plain), paragraph


def test_the_index_names_every_chinese_page():
    index = (DOCS / "zh" / "index.md").read_text()
    pages = {path.relative_to(DOCS / "zh").as_posix() for path in (DOCS / "zh").rglob("*.md")} - {"index.md"}
    assert pages <= set(re.findall(r"\]\(([^)]+)\)", index))
    assert {name.removesuffix(".md") for name in pages} <= set(index.partition("{toctree}")[2].split())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("## Compare two algorithms", "### Compare two algorithms"),
        ("training.rounds=20 --out runs/first", "training.rounds=30 --out runs/first"),
        ("1,437 handwritten digits", "1,347 handwritten digits"),
        ("`metrics.jsonl`", "`records.jsonl`"),
        ("(settings.md)", "(faq.md)"),
        ("(tutorials/own-data.md)", "(tutorials/own-model.md)"),
        ("| keep your own training loop |", "| keep | your own training loop |"),
        ("## Where to go", "One more paragraph.\n\n## Where to go"),
        ("One run proves little", "One run proves nothing"),  # only a word
    ],
)
def test_a_change_of_the_english_page_alone_is_found(old, new):
    page = next(page for page in PAGES if page.name == "quickstart.md")
    english, chinese = (ROOT / page).read_text(), (ROOT / PAGES[page]).read_text()
    translated = json.loads(RECORD.read_text())[str(page)]
    assert old in english
    assert differences(english, chinese, page, PAGES[page], translated) == []
    assert differences(english.replace(old, new), chinese, page, PAGES[page], translated) != []


def test_lines_may_be_wrapped_elsewhere():
    page = next(page for page in PAGES if page.name == "quickstart.md")
    english, chinese = (ROOT / page).read_text(), (ROOT / PAGES[page]).read_text()
    wrapped = english.replace("algorithms. You need", "algorithms.\nYou need")
    assert wrapped != english
    assert differences(wrapped, chinese, page, PAGES[page], json.loads(RECORD.read_text())[str(page)]) == []
