"""Chinese pages on a site whose language is English: their `lang`, by which a browser picks glyphs, and the search.

Chinese has no spaces between words. The search takes every two neighbouring characters for a word, in the index as in
what is searched for; a dictionary would find words more exactly, and would be one more package.
"""

import re

from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

PART = re.compile(r"[\u3400-\u9fff]+|[^\W\u3400-\u9fff]+")


class Search(SearchEnglish):
    """English words, and pairs of Chinese characters."""

    js_splitter_code = r"""
var splitQuery = (query) =>
  (query.match(/[\u3400-\u9fff]+|(?:(?![\u3400-\u9fff])[\p{L}\p{N}_])+/gu) ?? []).flatMap((part) =>
    /^[\u3400-\u9fff]{2}/.test(part) ? Array.from(part.slice(1), (char, i) => part[i] + char) : [part]);
"""

    def split(self, input: str) -> list[str]:  # noqa: A002 (as in the base class)
        """Split a text into what is searched for."""
        return [word for part in PART.findall(input) for word in pairs(part)]


def pairs(part: str) -> list[str]:
    """Neighbouring characters of a Chinese part; any other part, and a single character, as it is."""
    chinese = "\u3400" <= part[0] <= "\u9fff" and len(part) > 1
    return [part[i : i + 2] for i in range(len(part) - 1)] if chinese else [part]


def set_language(app: Sphinx, name: str, template: str, context: dict, doctree: object) -> None:
    """Say of a page in zh/ that it is in simplified Chinese, and begin its navigation with such pages."""
    if name.startswith("zh/"):
        context["language"] = "zh-Hans"
        parts = re.split(r'(?=<p class="caption")', context["furo_navigation_tree"])
        context["furo_navigation_tree"] = "".join(sorted(parts, key=lambda part: "中文" not in part))


def setup(app: Sphinx) -> dict[str, bool]:
    """Set the language of pages, and the search for all."""
    app.add_search_language(Search)
    app.connect("html-page-context", set_language, priority=900)  # after the theme made the navigation
    return {"parallel_read_safe": True, "parallel_write_safe": True}
