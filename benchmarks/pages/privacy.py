"""Write the numbers and draw the pictures of docs/privacy.md from the records of membership and private_curves.

The page is written by hand, but for its parts between two comments that name a section.

    python -m benchmarks.pages.privacy
"""

import re
from collections.abc import Callable, Mapping

from benchmarks.common.records import ROOT
from benchmarks.pages import membership, private_curves
from fedadamw.report.run_charts import save_chart

PAGE, PICTURES = ROOT / "docs" / "privacy.md", ROOT / "docs" / "privacy"
PART = re.compile(
    r"(<!-- (?P<name>[\w-]+): written by python -m benchmarks\.pages\.privacy -->\n).*?(<!-- end -->\n)", re.DOTALL
)
SECTIONS: Mapping[str, Callable[[], str]] = {"membership": membership.section, "curves": private_curves.section}


def main() -> None:
    PAGE.write_text(fill(PAGE.read_text()))
    for name, chart in private_curves.pictures().items():
        PICTURES.mkdir(exist_ok=True)
        save_chart(chart, PICTURES / f"{name}.svg")


def fill(page: str) -> str:
    """The page with what its sections say by the newest records."""
    return PART.sub(lambda part: f"{part[1]}\n{SECTIONS[part['name']]()}\n{part[3]}", page)


if __name__ == "__main__":
    main()
