"""Charts as notebooks show them: SVG, which needs no script and no network."""

from pathlib import Path

import vl_convert

from fedadamw.checkpoint import write_atomically
from fedadamw.report.run_charts import Chart, to_spec
from fedadamw.validation import check

SHARP = 2  # pixels of a PNG for each of the chart


class Picture:
    """A chart: a notebook shows it, `save` writes it, `chart` is the altair chart to change or combine."""

    def __init__(self, chart: Chart) -> None:
        self.chart = chart

    def save(self, path: str | Path) -> Path:
        """Write it to a file whose name ends in .svg, .png (twice its size) or .pdf, and return the path."""
        path, spec = Path(path), to_spec(self.chart)
        kinds = {
            ".svg": lambda: vl_convert.vegalite_to_svg(spec).encode(),
            ".png": lambda: vl_convert.vegalite_to_png(spec, scale=SHARP),
            ".pdf": lambda: vl_convert.vegalite_to_pdf(spec),
        }
        check(path.suffix in kinds, f"{path}: must end in .svg, .png or .pdf")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, kinds[path.suffix]())
        return path

    def _repr_svg_(self) -> str:
        """Show it in a notebook."""
        return str(vl_convert.vegalite_to_svg(to_spec(self.chart)))

    def __repr__(self) -> str:
        return "Picture; save(path) writes it as SVG, PNG or PDF"
