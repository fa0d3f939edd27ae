"""llms.txt at the site's root: what there is to read, page by page, and beside each page its Markdown."""

import re
import shutil
from pathlib import Path

from repository import PAGES, ROOT
from sphinx.application import Sphinx

INTRODUCTION = """# fedadamw

> Federated learning with adaptive optimizers, on PyTorch: a simulator (command line and Python), studies that
> compare and tune algorithms, and real federations over Flower. FedAdamW (arXiv 2510.27486) and eleven others.

Every page below is Markdown. `bash` and `python` blocks run as written, each page's in order; `sh` and `py` blocks
need what a test machine lacks (a cluster, Docker, a hub).
"""


def first_sentence(page: Path) -> str:
    """What a page says first, in one line, without links and emphasis."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if re.match(r"[\w`*\[\"]", part)]
    plain = re.sub(r"\[([^\]]+)\]\([^)]+\)|\*+([^*]+)\*+", r"\1\2", " ".join("".join(paragraphs[:1]).split()))
    return plain.split("。")[0].split(". ")[0].rstrip(".:,")


def write(app: Sphinx, error: Exception | None) -> None:
    """Write the list, and copy the pages it names."""
    if error or app.builder.name != "html":
        return
    lines = [INTRODUCTION]
    for name in sorted(app.env.found_docs):
        source = ROOT / PAGES[name] if name in PAGES else Path(app.env.doc2path(name))
        if source.suffix != ".md":
            continue
        copy = Path(app.outdir) / f"{name}.md"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        title = app.env.titles[name].astext()
        lines.append(f"- [{title}]({name}.md): {first_sentence(source)}")
    (Path(app.outdir) / "llms.txt").write_text("\n".join(lines) + "\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write llms.txt after the pages."""
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
