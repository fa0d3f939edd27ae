"""Where a measurement is written: numbers as JSON, figures as SVG and PNG."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedadamw.checkpoint import write_atomically
from fedadamw.io.json_values import replace_nan
from fedadamw.report.run_charts import Chart, save_chart
from fedadamw.validation import InputError, check

DIGITS = 7  # significant, of a number


def write_all(
    stem: str, facts: Mapping[str, Any], charts: Mapping[str, Chart], file: Path | None, folder: Path | None
) -> list[Path]:
    """Write the facts to `file` and as `stem`.json, with the charts by their names, into `folder`; return the paths."""
    files = [path for path in (file, folder and folder / f"{stem}.json") if path is not None]
    for path in files:
        write_atomically(path, (json.dumps(replace_nan(facts, DIGITS), indent=1) + "\n").encode())
    pictures = {folder / f"{name}.{kind}": chart for name, chart in charts.items() for kind in ("svg", "png") if folder}
    for path, chart in pictures.items():
        save_chart(chart, path)
    return [*files, *pictures]


def check_outputs(file: Path | None, folder: Path | None) -> None:
    """Make the folders of what is to be written, so that a wrong or read-only one is not found out at the end."""
    for path in (file and file.parent, folder):
        if path is not None:
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"{path}: no folder can be made there ({error.strerror})") from None
            try:
                tempfile.TemporaryFile(dir=path).close()
            except OSError as error:
                raise InputError(f"{path}: nothing can be written there ({error.strerror})") from None
    check(file is None or not file.is_dir(), f"--json {file}: is a folder; give a file")
