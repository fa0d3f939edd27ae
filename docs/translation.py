"""Chinese pages say what the English ones say: this finds where they differ.

python docs/translation.py           lists the differences
python docs/translation.py --accept  after the Chinese pages follow: records the English sections that they translate

A page of docs/zh has the path of its English page in docs. Headings' levels, code, formulas, numbers, links and tables
must be the same; words cannot be compared, so a section counts as translated until its English text changes.
"""

import calendar
import hashlib
import json
import os
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
RECORD = DOCS / "zh" / "translated.json"
FENCE = re.compile(r"^( *)(`{3,})[^`\n]*\n.*?^\1\2 *$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
LANGUAGE = re.compile(r"\[(?:中文|English)\]\([^)]+\)")
MONTH = re.compile(rf"(?<=\d )({'|'.join(calendar.month_name[1:])})(?= \d)")
BLANK = re.compile(r"\n\s*\n")
CODE = re.compile(r"`((?:[^`\n]|\n(?!\n))+)`")
ITEM = re.compile(r"^ *(?:[-*]|\d+\.) ", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@cache
def pairs() -> dict[Path, Path]:
    """Chinese page by English page, as paths from the repository's root; the index is a page of its own."""
    pages = sorted((DOCS / "zh").rglob("*.md"))
    found = {DOCS / page.relative_to(DOCS / "zh"): page for page in pages if page != DOCS / "zh" / "index.md"}
    found[ROOT / "README.md"] = ROOT / "README.zh-CN.md"
    return {english.relative_to(ROOT): chinese.relative_to(ROOT) for english, chinese in found.items()}


def prose_of(text: str) -> str:
    """A page without its code blocks and the link to its other language."""
    return LANGUAGE.sub("", FENCE.sub("", text))


def sections_of(text: str) -> list[str]:
    """A digest and the title of each section of a page; how its lines are wrapped does not count."""
    parts = re.split(r"^(?=#+ )", prose_of(text), flags=re.MULTILINE)[1:]
    return [
        f"{hashlib.sha256(' '.join(part.split()).encode()).hexdigest()[:12]} {part.partition(chr(10))[0].lstrip('# ')}"
        for part in parts
    ]


def slug(title: str) -> str:
    """A heading's anchor, as GitHub and the site make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def place(target: str, page: Path) -> str:
    """Where a link leads: a page by its English path, and the number of its heading, whose name differs."""
    if re.match(r"\w+:", target):
        return target
    name, _, anchor = target.partition("#")
    path = Path(os.path.normpath(page.parent / name)) if name else page
    english = next((english for english, chinese in pairs().items() if chinese == path), path)
    if not anchor or not (ROOT / path).exists():
        return str(english)
    titles = [slug(title) for _, title in HEADING.findall(FENCE.sub("", (ROOT / path).read_text()))]
    return f"{english}#{titles.index(anchor) if anchor in titles else anchor}"


def facts_of(text: str, page: Path) -> dict[str, list[str]]:
    """What a page and its translation have in common, in words of their own languages or not."""
    prose = prose_of(text)
    code = [" ".join(words.split()) for words in CODE.findall(prose)]
    words = CODE.sub(" ", prose)
    math = re.findall(r"\${1,2}([^$]+)\${1,2}", words)
    words = re.sub(r"\${1,2}[^$]+\${1,2}", " ", words)
    links = [place(target, page) for target in LINK.findall(words)]
    words = LINK.sub("]", words)
    words = MONTH.sub(lambda found: str(list(calendar.month_name).index(found[1])), words)  # 11 月 for November
    numbers = re.findall(r"(?<![A-Za-z_])\d(?:[\d,.]*\d)?", words)
    return {
        "levels of headings": [level for level, _ in HEADING.findall(prose)],
        "paragraphs and items of sections": [
            f"{number}: {len(re.split(BLANK, part.strip()))} and {len(ITEM.findall(part))}"
            for number, part in enumerate(re.split(r"^#+ .*$", prose, flags=re.MULTILINE))
        ],
        "code blocks": [found.group() for found in FENCE.finditer(text)],
        "code": sorted(code),
        "formulas": sorted(math),
        "numbers": sorted(number.replace(",", "") for number in numbers),
        "links": sorted(links),
        "rows of tables": [
            str(len(re.findall(r"(?<!\\)\|", row))) for row in re.findall(r"^\|.*$", words, re.MULTILINE)
        ],
    }


def differences(english: str, chinese: str, page: Path, translation: Path, translated: list[str]) -> list[str]:
    """What a Chinese text lacks or has too much, and which sections of the English one changed since."""
    found = []
    facts, others = facts_of(english, page), facts_of(chinese, translation)
    for name, values in facts.items():
        if values != others[name]:
            less, more = Counter(values) - Counter(others[name]), Counter(others[name]) - Counter(values)
            found.append(f"{name}: only English {sorted(less)}, only Chinese {sorted(more)}")
    new = [section for section in sections_of(english) if section not in translated]
    return found + [f"not translated since it changed: {section.partition(' ')[2]!r}" for section in new]


def all_differences() -> dict[str, list[str]]:
    """By Chinese page; pages without any are left out."""
    translated = json.loads(RECORD.read_text())
    found = {}
    for page, translation in pairs().items():
        texts = (ROOT / page).read_text(), (ROOT / translation).read_text()
        found[str(translation)] = differences(*texts, page, translation, translated.get(str(page), []))
    return {name: problems for name, problems in found.items() if problems}


def accept() -> None:
    """Record the sections of all English pages as translated."""
    sections = {str(page): sections_of((ROOT / page).read_text()) for page in pairs()}
    RECORD.write_text(json.dumps(sections, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--accept"]:
        accept()
    problems = all_differences()
    for name, lines in problems.items():
        print(name, *lines, sep="\n  ")
    sys.exit(1 if problems else 0)
