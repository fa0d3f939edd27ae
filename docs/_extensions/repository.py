"""Pages that are files elsewhere in the repository, and links to such files, which work on GitHub too."""

import os
import re
from pathlib import Path

from sphinx.application import Sphinx

DOCS = Path(__file__).parent.parent
ROOT = DOCS.parent
PAGES = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md", "deploy": "deploy/README.md"}
PLACES = {ROOT / file: DOCS / f"{page}.md" for page, file in PAGES.items()} | {
    ROOT / "README.md": DOCS / "index.md",
    ROOT / "deploy": DOCS / "deploy.md",
}
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"  # that of _static needs no network
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def site_link(target: str, *, file: Path, page: Path) -> str:
    """A relative link of `file` as it must be in `page`: to another page, or to the file itself, as a download."""
    path = Path(os.path.normpath(file.parent / target))
    return os.path.relpath(PLACES.get(path, path), page.parent)


def read_source(app: Sphinx, name: str, content: list[str]) -> None:
    """Replace a page of PAGES by its file, and set the links of any page that lead out of docs/.

    A notebook's badge is a file of the site.
    """
    if (DOCS / f"{name}.ipynb").exists():
        content[0] = content[0].replace(BADGE, "../_static/open-in-colab.svg")
    page = DOCS / f"{name}.md"
    if page.suffix != ".md" or not page.exists():
        return
    file = ROOT / PAGES[name] if name in PAGES else page
    text = file.read_text() if name in PAGES else content[0]
    content[0] = LINK.sub(lambda found: site_link(found.group(), file=file, page=page), text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Read pages and links as above."""
    app.connect("source-read", read_source)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
