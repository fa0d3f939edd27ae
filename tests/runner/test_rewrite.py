"""The page of a run written again from its files, with the partition it had, and its files for a paper."""

import json
import shutil

from fedadamw.report.export import EXPORTS
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.rewrite import rewrite_run


def specs_of(page: str) -> dict:
    """The charts of a page."""
    text = page.split('<script type="application/json" id="specs">', 1)[1].split("</script>", 1)[0]
    return json.loads(text)["charts"]


def test_a_run_is_shown_again_with_the_partition_it_had(finished_run, tmp_path):
    before = specs_of((finished_run / "report.html").read_text())
    path = tmp_path / "run"
    shutil.copytree(finished_run, path)
    (path / "report.html").unlink()
    rewrite_run(RunFolder(path))
    assert specs_of((path / "report.html").read_text()) == before
    (path / "partition.json").unlink()
    rewrite_run(RunFolder(path))
    after = (path / "report.html").read_text()
    assert specs_of(after) == before, "counted again from the data, as of an older run"
    assert "Who holds what" in after


def test_a_run_whose_data_are_gone_is_shown_without_its_partition(finished_run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(finished_run, path)
    (path / "partition.json").write_text("{")
    settings = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(settings.replace("source: digits", "source: ./gone"))
    rewrite_run(RunFolder(path))
    assert specs_of((path / "report.html").read_text()).keys() == {"losses", "score"}


def test_a_runs_files_for_a_paper(finished_run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(finished_run, path)
    names = rewrite_run(RunFolder(path), EXPORTS)
    assert {"export/records.csv", "export/partition.pdf", "export/loss-by-round.svg", "export/summary.tex"} <= {*names}
    assert all((path / name).stat().st_size for name in names)
    lines = (path / "export" / "records.csv").read_text().splitlines()
    assert len(lines) == 1 + len(RunFolder(path).records())
    assert lines[0].startswith("run,algorithm,seed,round,lr,train_loss,test_loss,")
    assert r"test accuracy & " in (path / "export" / "summary.tex").read_text()
