"""Writes the page of a run again from its files, and exports its charts and records for a paper."""

from collections.abc import Sequence

import numpy as np

from fedadamw.checkpoint import write_atomically
from fedadamw.io.yaml_text import read_yaml
from fedadamw.prepare.samples import load_samples, make_partition
from fedadamw.report import run_charts
from fedadamw.report.client_names import name_clients
from fedadamw.report.client_scores import NAME as CLIENT_SCORES
from fedadamw.report.client_scores import read_scores
from fedadamw.report.clients_section import client_charts
from fedadamw.report.devices_section import device_charts
from fedadamw.report.export import FOLDER, HEIGHT, WIDTH, client_cells, record_cells, write_charts, write_csv
from fedadamw.report.latex import escape_latex, make_table
from fedadamw.report.metrics import begin_sentence, find_evaluations, find_score, main_metric, name_score
from fedadamw.report.run_files import RecordDict
from fedadamw.report.run_page import RunPage, summarize, write_curves
from fedadamw.report.run_status import RunStatus, describe_resuming, describe_stopped
from fedadamw.report.virtual_time import has_clock, name_time
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.partition_file import read_mix, read_names, read_partition, write_partition
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load
from fedadamw.validation import InputError, check


def rewrite_run(folder: RunFolder, kinds: Sequence[str] = ()) -> list[str]:
    """Write curves.png and report.html again, and the files of `kinds`; return the names of all.

    Raises InputError if no round has ended, or if the run goes on in another process.
    """
    with folder.lock():
        records, experiment = folder.records(), load(str(folder.config))
        check(bool(records), f"{folder.path}: no round has ended, so there is nothing to show")
        counts, classes = _find_partition(folder, experiment)
        settings = read_yaml(str(folder.config), folder.config.read_text())
        status = folder.ended or describe_stopped(
            len(records), experiment.training.rounds, describe_resuming(folder.path)
        )
        write_curves(folder.path, records)
        about = (settings, folder.read_manifest(), counts, classes, read_mix(folder.path), read_names(folder.path))
        RunPage(folder.path, *about).write(records, RunStatus(status))
        drawn = ["curves.png"] if find_evaluations(records) else []
        return ["report.html", *drawn, *_export(folder, experiment, records, (counts, classes), kinds)]


def _find_partition(folder: RunFolder, experiment: Experiment) -> tuple[np.ndarray, Sequence[str]]:
    """Return the samples of each class that each client has; of an older run from its data, all 0 if these are gone."""
    found = read_partition(folder.path)
    if found is not None:
        return found
    try:
        train, _ = load_samples(experiment)
        partition = make_partition(experiment, train)
    except (InputError, OSError):
        return np.zeros((0, 0), int), ()
    if partition.fingerprint != folder.read_manifest()["partition"]["fingerprint"]:
        return np.zeros((0, 0), int), ()  # other data than the run had
    counts = partition.counts(train.labels, len(train.classes))
    write_partition(folder.path, counts, train.classes)
    return counts, train.classes


def _export(
    folder: RunFolder,
    experiment: Experiment,
    records: Sequence[RecordDict],
    partition: tuple[np.ndarray, Sequence[str]],
    kinds: Sequence[str],
) -> list[str]:
    """Write the files of `kinds` into the run's `export` folder."""
    out, names = folder.path / FOLDER, []
    if kinds:
        out.mkdir(exist_ok=True)
    if "csv" in kinds:
        run = {"run": folder.path.name, "algorithm": experiment.algorithm_name, "seed": experiment.seed}
        write_csv(record_cells(run, records), out / "records.csv")
        names.append("records.csv")
        scores = read_scores(folder.path / CLIENT_SCORES, rounds=len(records))
        if scores:
            write_csv(client_cells(run, scores), out / "client-scores.csv")
            names.append("client-scores.csv")
    if {"svg", "pdf"} & set(kinds):
        names += write_charts(_charts(folder, records, *partition), "", out, kinds)
    if "tex" in kinds:
        rows = [[escape_latex(name), escape_latex(value)] for name, value in summarize(records)]
        caption = escape_latex(f"{experiment.algorithm_name} after {len(records)} rounds, seed {experiment.seed}.")
        write_atomically(out / "summary.tex", make_table(["", "value"], rows, caption, "run").encode())
        names.append("summary.tex")
    return [f"{FOLDER}/{name}" for name in names]


def _charts(
    folder: RunFolder, records: Sequence[RecordDict], counts: np.ndarray, classes: Sequence[str]
) -> dict[str, tuple[str, run_charts.Chart]]:
    """Return the run's charts in a paper's size, each with its heading."""
    path = folder.path
    charts: dict[str, tuple[str, run_charts.Chart]] = {}
    if run_charts.has_losses(records):
        charts["losses"] = ("Loss by round", run_charts.loss_chart(records, width=WIDTH, height=HEIGHT))
    if run_charts.has_epsilon(records):
        charts["epsilon"] = ("Epsilon by round", run_charts.epsilon_chart(records, width=WIDTH, height=HEIGHT))
    if find_evaluations(records):
        of = find_score(records)
        heading = f"{begin_sentence(name_score(main_metric(records, of), of))} by round"
        charts["score"] = (heading, run_charts.score_chart(records, width=WIDTH, height=HEIGHT))
        if has_clock(records):
            along = run_charts.score_chart(records, by="virtual", width=WIDTH, height=HEIGHT)
            charts["virtual"] = (f"{heading.rpartition(' by ')[0]} by {name_time(records)}", along)
    scores, names = read_scores(path / CLIENT_SCORES, rounds=len(records)), name_clients(path, read_names(path))
    charts |= client_charts(scores, read_mix(path), names, width=WIDTH, height=HEIGHT)
    settings = read_yaml(str(folder.config), folder.config.read_text())
    charts |= device_charts(path, records, settings, names, width=WIDTH, height=HEIGHT)
    if counts.any():
        charts["partition"] = ("Partition", run_charts.partition_chart(counts, classes, width=WIDTH))
    if records[-1].get("federation"):
        charts["answers"] = ("Outcomes of clients", run_charts.outcomes_chart(records, width=WIDTH))
    return charts
