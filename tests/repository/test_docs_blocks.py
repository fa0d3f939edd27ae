"""Every code block of the site runs, or is at least well formed: see tests/support/pages.py for the convention."""

import re

import pytest
from support.checkout import ROOT
from support.pages import RUN, blocks_of, commands_of, problem_in, run_page

from fedadamw.settings.load import load

DOCS = ROOT / "docs"
PAGES = [
    *sorted(page for page in DOCS.rglob("*.md") if "zh" not in page.relative_to(DOCS).parts),  # zh: as the English ones
    ROOT / "deploy" / "README.md",
    ROOT / "CONTRIBUTING.md",
]
NAMES = {str(page.relative_to(ROOT)): page for page in PAGES}
ELSEWHERE = ("docs/several-sites.md",)  # tests/flower/test_several_sites.py runs these
RUNNABLE = [
    name
    for name, page in NAMES.items()
    if name not in ELSEWHERE and any(b.language in RUN and not b.is_file for b in blocks_of(page))
]


@pytest.mark.parametrize("name", NAMES)
def test_every_block_is_what_its_language_says(name):
    problems = [(block.line, problem) for block in blocks_of(NAMES[name]) if (problem := problem_in(block))]
    assert problems == []


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_of_every_command_exist(name):
    for _, verb, *rest in commands_of(NAMES[name].read_text()):
        recipe = next((word for word in rest if not word.startswith("-")), "")
        made_there = "fedavgm" in " ".join(rest)  # the package of adding-an-algorithm.md: test_adding.py runs these
        trains = verb in ("run", "compare", "tune", "ablate") and not made_there
        if trains and re.fullmatch(r"digits|cifar10-small|(small|paper)/.*", recipe):
            settings = [rest[i + 1] for i, word in enumerate(rest) if word == "-s"]
            load(recipe, [setting for setting in settings if "=[" not in setting])


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNABLE)
def test_the_blocks_of_a_page_run_in_order(name, tmp_path):
    run_page(NAMES[name], tmp_path)


def test_no_page_names_the_folder_beside_the_checkout():
    pages = [ROOT / "README.md", *DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb"), ROOT / "deploy" / "README.md"]
    assert [page.name for page in pages if "../shared" in page.read_text()] == []
