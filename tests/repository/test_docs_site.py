"""The documentation site builds without a warning, needs no network to read, and fits wide and narrow screens."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from support.checkout import ROOT

pytest.importorskip("sphinx", reason="the extra docs is not installed")
LOADED = re.compile(r"""<(?:script|img|iframe|source)\b[^>]*?\bsrc="([^"]+)"|<link\b[^>]*?\bhref="([^"]+)"[^>]*""")
KERNEL_SAYS = "[IPKernelApp] WARNING | Kernel is running over TCP"  # of the notebooks, on this machine only
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def site(shared_folder) -> Path:
    """The built site of this version."""

    def make(folder: Path) -> None:
        build = [sys.executable, ROOT / "docs" / "build.py", folder]
        done = subprocess.run(build, capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, done.stderr
        assert [line for line in done.stderr.splitlines() if not line.startswith(KERNEL_SAYS)] == []

    folder = shared_folder("site", make)
    return next(path for path in folder.iterdir() if path.name[0].isdigit())


def pages(site: Path) -> list[Path]:
    return sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)


def test_every_page_of_docs_is_on_the_site(site):
    files = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.ipynb")]
    sources = {path.relative_to(ROOT / "docs").with_suffix("") for path in files}
    built = {path.relative_to(site).with_suffix("") for path in pages(site)}
    assert {str(name) for name in sources - built if name.name != "README"} == set()


def test_nothing_is_loaded_from_elsewhere(site):
    for page in pages(site):
        for groups in LOADED.findall(page.read_text()):
            target = "".join(groups)
            assert not re.match(r"(\w+:)?//", target), f"{page.relative_to(site)} loads {target}"
    for sheet in site.rglob("*.css"):
        for target in re.findall(r"""(?:url\(|@import\s+)['"]?([^'")\s;]+)""", sheet.read_text()):
            assert not re.match(r"(\w+:)?//", target), f"{sheet.relative_to(site)} loads {target}"


def test_the_links_between_pages_lead_somewhere(site):
    anchors = {page: set(re.findall(r'\bid="([^"]+)"', page.read_text())) for page in pages(site)}
    for page in anchors:
        for href in re.findall(r'<a\b[^>]*?\bhref="([^"]+)"', page.read_text()):
            if re.match(r"(https?|mailto):", href):
                continue
            target, _, anchor = href.partition("#")
            path = (page.parent / unquote(target)).resolve() if target else page
            assert path.exists(), f"{page.relative_to(site)}: {href}"
            if anchor and path in anchors:
                assert anchor in anchors[path], f"{page.relative_to(site)}: {href}"


def test_llms_txt_lists_the_pages_and_they_are_there(site):
    listed = re.findall(r"^- \[[^\]]+\]\(([^)]+)\): \S", (site / "llms.txt").read_text(), re.MULTILINE)
    assert {"quickstart.md", "algorithms/fedadamw.md", "federation.md"} <= set(listed)
    assert all((site / name).exists() for name in listed)


def test_the_switcher_knows_this_version(site):
    assert f'"{site.name}"' in (site.parent / "versions.js").read_text()
    assert f"{site.name}/index.html" in (site.parent / "index.html").read_text()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_page_opens_without_an_error_and_fits(site, chromium, width, scheme):
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems = []
    for page in pages(site):
        tab = context.new_page()
        name = str(page.relative_to(site))
        tab.on("console", lambda message, name=name: message.type == "error" and problems.append((name, message.text)))
        tab.on("pageerror", lambda error, name=name: problems.append((name, str(error))))
        tab.on("request", lambda request, name=name: request.url[:4] == "http" and problems.append((name, request.url)))
        tab.goto(page.as_uri(), timeout=120_000)
        beyond = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if beyond > 0:
            problems.append((name, f"{beyond} px wider than the screen"))
        tab.close()
    context.close()
    assert problems == []


def test_math_is_drawn_in_the_font_that_the_site_brings(site, chromium):
    tab = chromium.new_page()
    tab.goto((site / "algorithms" / "fedadamw.html").as_uri())
    assert tab.locator("math").count() > 5
    assert tab.evaluate("document.fonts.ready.then(() => document.fonts.check('16px \"STIX Two Math\"'))")
    assert tab.locator("math msqrt").first.bounding_box()["height"] > 10
    tab.close()


@pytest.mark.parametrize(("words", "pages"), [("dirichlet", 4), ("动量", 2), ("客户端漂移", 1), ("FedAdamW 学习率", 2)])
def test_the_search_finds_pages(site, chromium, words, pages):
    tab = chromium.new_page()
    tab.goto((site / "search.html").as_uri() + f"?q={words}")
    tab.wait_for_selector("#search-results li a", timeout=60_000)
    assert tab.locator("#search-results li a").count() >= pages
    tab.close()


def test_chinese_pages_say_that_they_are_and_lead_to_each_other(site):
    page = (site / "zh" / "quickstart.html").read_text()
    assert '<html class="no-js" lang="zh-Hans"' in page
    assert page.index(">FedAdamW 算法</a>") < page.index(">Install</a>")
    assert 'lang="en"' in (site / "quickstart.html").read_text()
