"""Math as MathML, made at build: browsers draw it without a script, in a font that the site brings along."""

import re
import shutil
from pathlib import Path

import ziamath
from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

FONT = Path(ziamath.__file__).parent / "fonts" / "STIXTwoMath-Regular.ttf"
NORM = re.compile(r"<mo[^>]*>(&#x0?2016;|&#x0?2225;|‖|∥)</mo>")
logger = logging.getLogger(__name__)


def mathml(node: nodes.Element, display: str) -> str:
    """A node's formula as MathML; a warning, which stops the build, if it cannot be read."""
    try:
        text = convert(node.astext(), display=display)
    except Exception as error:
        logger.warning("this formula cannot be read: %s (%r)", node.astext(), error, location=node)
        return ""
    return NORM.sub(r'<mo stretchy="false">\1</mo>', text)  # or the bars of a norm grow with what follows them


def visit_math(self: HTML5Translator, node: nodes.Element) -> None:
    """Write a formula within a line."""
    self.body.append(mathml(node, "inline"))
    raise nodes.SkipNode


def visit_block(self: HTML5Translator, node: nodes.Element) -> None:
    """Write a formula on a line of its own, which scrolls if it is wider than the page."""
    self.body.append(f'<div class="math-block">{mathml(node, "block")}</div>\n')
    raise nodes.SkipNode


def copy_font(app: Sphinx, error: Exception | None) -> None:
    """Put the font beside site.css, which names it."""
    if not error and app.builder.format == "html":
        shutil.copyfile(FONT, Path(app.outdir) / "_static" / FONT.name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the renderer `mathml` and its font."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_block, None))
    app.connect("build-finished", copy_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
