"""How Sphinx builds the site; `make docs` runs it. Nothing here or in the pages needs the network."""

import re
import sys
from functools import partialmethod
from pathlib import Path

from nbclient import NotebookClient

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))
NotebookClient.__init__ = partialmethod(NotebookClient.__init__, startup_timeout=300)  # s; MyST-NB leaves it at 60

project = "fedadamw"
author = "the fedadamw developers"
repository = "OWNER/REPOSITORY"  # on GitHub; also in the notebooks, see releasing.md
copyright = author
release = re.search(r'^version = "(.+)"', (HERE.parent / "pyproject.toml").read_text(), re.MULTILINE)[1]
version = ".".join(release.split(".")[:2])  # a site per minor version, as /0.2/

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "chinese",
    "docstrings",
    "llms",
    "mathml",
    "repository",
]
exclude_patterns = ["_*", "**/README.md"]
myst_enable_extensions = ["colon_fence", "dollarmath", "fieldlist"]
myst_heading_anchors = 4  # GitHub's anchors, so that a link works there and here
smartquotes = False
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 900  # seconds a cell, on a busy machine
nb_execution_in_temp = True
nb_merge_streams = True
nb_output_stderr = "remove"  # warnings of other packages
nb_render_markdown_format = "gfm"  # with tables

html_theme = "furo"
html_title = f"fedadamw {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/versions.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
copybutton_exclude = ".linenos, .gp, .go"
pygments_style = "default"
pygments_dark_style = "github-dark"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
nitpick_ignore_regex = [("py:.*", r".*")]  # types of torch have no pages here; links are checked
