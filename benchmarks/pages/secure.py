"""Write what docs/secure-aggregation.md says was measured, from the record of benchmarks/measure/federation_secure.

python -m benchmarks.pages.secure
"""

import re
from collections.abc import Mapping
from typing import Any

from benchmarks.common.records import ROOT, read_newest

PAGE = ROOT / "docs" / "secure-aggregation.md"
PART = re.compile(r"(<!-- measured: written by .*? -->\n).*?(<!-- end -->\n)", re.DOTALL)
MISSING = "There is no record yet: `python -m benchmarks.measure.federation_secure --record`.\n"


def main() -> None:
    PAGE.write_text(fill(PAGE.read_text()))


def fill(page: str) -> str:
    """The page with what the newest record says."""
    record = read_newest("federation-secure", "cpu")
    text = MISSING if record is None else describe(record)
    return PART.sub(lambda part: f"{part[1]}\n{text}\n{part[2]}", page)


def describe(record: Mapping[str, Any]) -> str:
    """Return the sentences about a record."""
    found, accuracy, sent = record["differences"], record["accuracy"], record["upload_bytes"]
    assert found["t"] == 0, "steps are whole numbers, which lose nothing"
    return (
        f"Measured after {record['rounds']} rounds of {record['nodes']} processes ({record['device']}, flwr "
        f"{record['versions']['flwr']}), against the same rounds without secure\naggregation: the weights differ by "
        f"{found['x']:.0e} of the way they have moved, Delta_G by {found['delta']:.0e} of its norm, v by at most "
        f"{found['v']:.0e} of a\nblock, steps not at all; the accuracy is {accuracy['secure']:.3f} and "
        f"{accuracy['plain']:.3f}. An upload has {sent['secure']:,} bytes in place of {sent['plain']:,}.\n"
    )


if __name__ == "__main__":
    main()
