"""Draw docs/one-round.svg: a round of FedAdamW, its formulas set as math and kept as outlines, for any browser.

Needs the extra `docs`, which has ziamath.

    python -m benchmarks.pages.one_round
"""

import re
from pathlib import Path
from xml.etree import ElementTree

import ziamath

PICTURE = Path(__file__).parent.parent.parent / "docs" / "one-round.svg"
WIDTH, HEIGHT = 720, 424
SIZE = 19.0  # of the formulas, in pixels

STYLE = """
.card{fill:#f8fafc;stroke:#d0d7de}.box{fill:#fff;stroke:#94a3b8}.part{fill:#f1f5f9}
.ink{color:#1f2937}.quiet{color:#57606a}.down{color:#1d4ed8}.up{color:#c2410c}
g,text,marker path{fill:currentColor}.line{fill:none;stroke:currentColor;stroke-width:2.5}
@media (prefers-color-scheme:dark){
.card{fill:#161b22;stroke:#30363d}.box{fill:#0d1117;stroke:#6e7681}.part{fill:#1c2430}
.ink{color:#e6edf3}.quiet{color:#a4adb8}.down{color:#79b8ff}.up{color:#ffa657}}
"""
DESCRIPTION = """The server sends x, Delta_G, the block means of v and t to each sampled client: 2d + B + 1 numbers.
A client starts from y = x and m = 0, with v set to its mean in each block. K times, it updates m and v with the
gradient at y, and steps: y becomes y - lr (m_hat / (sqrt(v_hat) + epsilon) + alpha Delta_G + lambda y). It sends
delta_i = y - x, the mean of v in each block, and K: d + B + 1 numbers. The server averages: x becomes x + mean delta,
Delta_G becomes - mean delta / (mean K lr), the block means of v are averaged, and t becomes t + mean K."""


class Picture:
    """An SVG that grows by shapes, words and formulas; a glyph is drawn once and used wherever it occurs."""

    def __init__(self, title: str, description: str) -> None:
        attributes = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "width": str(WIDTH), "height": str(HEIGHT), "role": "img"}
        attributes |= {"xmlns": "http://www.w3.org/2000/svg", "font-family": "Helvetica, Arial, sans-serif"}
        self.root = ElementTree.Element("svg", attributes)
        for tag, text in (("title", title), ("desc", description), ("style", STYLE)):
            ElementTree.SubElement(self.root, tag).text = text
        for name in ("down", "up"):
            head = {
                "id": name,
                "viewBox": "0 0 10 10",
                "refX": "9",
                "refY": "5",
                "markerWidth": "5",
                "markerHeight": "5",
            }
            marker = ElementTree.SubElement(self.root, "marker", {**head, "orient": "auto", "class": name})
            ElementTree.SubElement(marker, "path", {"d": "M0 0L10 5L0 10z"})

    def box(self, kind: str, x: float, y: float, width: float, height: float) -> None:
        """Draw a box with round corners; `kind` is its class in STYLE."""
        place = {"x": x, "y": y, "width": width, "height": height, "rx": 10}
        ElementTree.SubElement(self.root, "rect", {"class": kind, **{k: f"{v:g}" for k, v in place.items()}})

    def words(self, text: str, x: float, y: float, kind: str = "ink", *, size: float = 16, end: bool = False) -> None:
        """Write words whose baseline begins, or ends, at (x, y); a `*` in front makes them bold."""
        attributes = {"class": kind, "x": f"{x:g}", "y": f"{y:g}", "font-size": f"{size:g}"}
        attributes |= {"text-anchor": "end"} if end else {}
        attributes |= {"font-weight": "bold"} if text.startswith("*") else {}
        ElementTree.SubElement(self.root, "text", attributes).text = text.lstrip("*")

    def formula(self, latex: str, x: float, y: float, kind: str = "ink", *, end: bool = False) -> None:
        """Set a formula whose baseline begins, or ends, at (x, y)."""
        group = ElementTree.SubElement(self.root, "g", {"class": kind})
        formula = ziamath.Latex(latex, size=SIZE, color="currentColor", inline=True)
        formula.drawon(group, x - end * formula.getsize()[0], y)
        for parent in list(group.iter()):
            for glyph in parent.findall("symbol"):
                parent.remove(glyph)
                if self.root.find(f"symbol[@id='{glyph.get('id')}']") is None:
                    self.root.append(glyph)

    def arrow(self, kind: str, x: float, y: float, to: float) -> None:
        """Draw a vertical arrow from (x, y) to (x, to)."""
        path = {"class": f"line {kind}", "d": f"M{x:g} {y:g}V{to:g}", "marker-end": f"url(#{kind})"}
        ElementTree.SubElement(self.root, "path", path)

    def to_svg(self) -> str:
        """Return the file's text, with numbers of two digits after the point."""
        text = ElementTree.tostring(self.root, encoding="unicode").replace(' fill="currentColor"', "")
        text = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found.group()):.2f}".rstrip("0").rstrip("."), text)
        text = re.sub(r' d="[^"]+"', lambda found: re.sub(r" ?([A-Z]) ", r"\1", found.group()), text)
        return text.replace(" />", "/>") + "\n"


def draw() -> str:
    """Return the picture as SVG."""
    picture = Picture("One round of FedAdamW", DESCRIPTION)
    picture.box("card", 0.5, 0.5, WIDTH - 1, HEIGHT - 1)
    draw_server(picture)
    draw_messages(picture)
    draw_client(picture)
    return picture.to_svg()


def draw_server(picture: Picture) -> None:
    """Draw what the server does with the mean upload."""
    picture.box("box", 18, 18, 684, 92)
    picture.words("*server", 38, 54)
    picture.words("averages", 38, 82, "quiet")
    picture.formula(r"x \leftarrow x + \bar\delta", 170, 54)
    picture.formula(r"\bar v \leftarrow \mathrm{mean\ of\ the\ } \bar v_i", 170, 89)
    picture.formula(r"\Delta_G \leftarrow {-}\bar\delta \,/\, (\bar K\, \mathrm{lr})", 430, 54)
    picture.formula(r"t \leftarrow t + \bar K", 430, 89)


def draw_messages(picture: Picture) -> None:
    """Draw what travels, and how many numbers that are."""
    picture.arrow("down", 262, 114, to=192)
    picture.formula(r"x,\ \Delta_G,\ \bar v,\ t", 244, 145, "down", end=True)
    picture.formula(r"2d + B + 1 \mathrm{\ numbers}", 244, 173, "down", end=True)
    picture.arrow("up", 458, 192, to=114)
    picture.formula(r"\delta_i,\ \bar v_i,\ K", 476, 145, "up")
    picture.formula(r"d + B + 1 \mathrm{\ numbers}", 476, 173, "up")


def draw_client(picture: Picture) -> None:
    """Draw what each client does, on the first of a stack of cards."""
    for offset in (20, 10, 0):
        picture.box("box", 18 + offset, 196 + offset, 664, 190)
    picture.words("*client", 38, 223)
    picture.formula("i", 93, 223)
    picture.words("and every other client of the round, each with its own data", 108, 223, "quiet", size=15)
    picture.words("start", 38, 254, "quiet")
    picture.formula(
        r"y \leftarrow x, \quad m \leftarrow 0, \quad v \leftarrow \bar v \mathrm{\ \ in\ each\ block}", 130, 254
    )
    picture.box("part", 28, 266, 644, 78)
    picture.formula(r"K \mathrm{\ times}", 38, 310, "quiet")
    picture.formula(r"m,\ v \leftarrow \mathrm{\ AdamW's\ moments,\ with\ the\ gradient\ at\ } y", 130, 292)
    step = r"\hat m \,/\, (\sqrt{\hat v} + \epsilon) + \alpha\, \Delta_G + \lambda\, y"
    picture.formula(rf"y \leftarrow y - \mathrm{{lr}}\,\left(\, {step} \,\right)", 130, 328)
    picture.words("end", 38, 371, "quiet")
    picture.formula(
        r"\delta_i \leftarrow y - x, \quad \bar v_i \leftarrow \mathrm{\ mean\ of\ } v \mathrm{\ in\ each\ block}",
        130,
        371,
    )


if __name__ == "__main__":
    PICTURE.write_text(draw())
