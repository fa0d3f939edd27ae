"""The section of docs/results.md on comparisons with as many seeds as a rule wants, from the record of the harness."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from benchmarks.common.records import read_newest
from benchmarks.evidence.record import head
from benchmarks.evidence.rule import FEWEST, Paired, compare, half_width, tail_score
from benchmarks.evidence.variants import RIVALS
from benchmarks.evidence.workloads import WORKLOADS
from fedadamw.report.metrics import label

Record = Mapping[str, Any]
NOT_BELOW, ABOVE = 6, 2  # workloads that were aimed at, before any run
WORDS = {"fedadamw": "FedAdamW", "local-adamw": "Local AdamW", "fedavg": "FedAvg", "fedmuon": "FedMuon"}
WORDS |= {"fedlion": "FedLion", "diloco": "DiLoCo", "muloco": "MuLoCo", "fedadamw memory=1": "FedAdamW with `memory=1`"}
WORDS |= {name: f"FedAdamW with `{name.removeprefix('fedadamw ')}`" for name in (*RIVALS, "fedadamw share=none")}


def section() -> str:
    """Return the section of the page; until there is a record, the rules alone."""
    record = read_newest("evidence", "cpu")
    return describe(record or {**head(), "workloads": [], "not_begun": list(WORKLOADS)})


def describe(record: Record) -> str:
    """Return the section as text."""
    parts = ["## Comparisons with as many seeds as it takes\n", introduce(record)]
    if record["workloads"]:
        parts += [
            of_machine(record),
            main_table(record),
            aims(record),
            choice(record),
            variants_table(record),
            rates(record),
        ]
    return "\n".join([*parts, missing(record)])


def introduce(record: Record) -> str:
    """Return the rules."""
    rule = record["rule"]
    first, (seed, second) = rule["first_seed"], rule["tuning_seeds"]
    chosen, seen = ("; ".join(WORKLOADS[n].title for n in record[key]) for key in ("chosen_on", "looked_at"))
    return (
        "`python -m benchmarks.evidence` runs these comparisons. Its rules were fixed before the first run:\n\n"
        f"- Every difference is from {word(record['base'])} with the same seed. A comparison has {rule['fewest']} "
        "seeds, and then one more as long as the 95% interval of the mean difference (Student t) is "
        f"{rule['width']:g} points wide or wider, up to {rule['most']}. Stopping by an interval's width, which says "
        "nothing of its sign, makes intervals too narrow: by simulation they contain the difference in 92 to 95 of 100 "
        "cases.\n"
        f"- A score is the mean over the evaluations in the last {rule['tail']:.0%} of the rounds, which in runs of "
        "few rounds is the last one alone; the last round's score stands beside it.\n"
        "- Each variant has its own learning rate, chosen at the length and the split of the workload on training "
        "data that are held out, from a grid that grows while its best is at an end. It is chosen with seed "
        f"{seed}, and between two rates closer than {rule['close']:g} point with seed {second} as well. Reported seeds "
        f"begin at {first}: earlier ones were looked at before. Nothing else is tuned: betas, decay, alpha and the "
        "rate and momentum of DiLoCo's outer step are the recipes' or the defaults.\n"
        f"- The setting of ours that is tested is {word(record['candidate'])}. It was chosen by earlier runs with "
        f"three other seeds on two workloads ({chosen}); the others test the choice, though ViT in 240 rounds has "
        "the data and the split of one that chose. Runs of one to three such seeds on some of these had been seen as "
        f"well ({seen}), and did not choose.\n"
        "- An interval that contains 0 reads *not told apart*, fewer than "
        f"{rule['fewest']} seeds *too few seeds*, whatever their interval. A run that diverged has no score: another "
        "seed takes its place, and a setting with such a run counts neither as above nor as not below.\n"
        "- Intervals are over seeds, which change the split over clients, the first weights, the batches and, of "
        "CIFAR-10, the test images that are drawn. Texts and digits have one test set: how much another one would "
        "change is not in their intervals. Nor are intervals corrected for their number: of twenty comparisons without "
        "a difference, one is expected to read *above* or *below*.\n"
    )


def of_machine(record: Record) -> str:
    """Return where the runs ran."""
    return f"Runs of one thread on {record['device']}, torch {record['versions'].get('torch')}.\n"


def main_table(record: Record) -> str:
    """Return the table of the main variants, a row for each workload."""
    base, *ours = record["main"]
    heads = ["workload", "metric", word(base), *(h for name in ours for h in (f"{word(name)}, less it", "says"))]
    lines = [f"| {' | '.join(heads)} |", f"| --- | --- | ---: |{' ---: | --- |' * len(ours)}"]
    for workload in record["workloads"]:
        star = " (chosen on)" if workload["name"] in record["chosen_on"] else ""
        cells = [f"{workload['title']}{star}", label(workload.get("metric", "")), show_mean(workload, base)]
        for name in ours:
            paired = paired_of(workload, name, base)
            cells += [show_paired(paired), says(workload, name, paired)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def aims(record: Record) -> str:
    """Return what the chosen setting was meant to reach, and whether it does on the workloads that test it."""
    candidate, base, margin = record["candidate"], record["base"], record["rule"]["margin"]
    chosen = tuple(record["chosen_on"])  # longer runs of one of these do not test the choice either
    testing = [workload for workload in record["workloads"] if not workload["name"].startswith(chosen)]
    pairs = {w["title"]: paired_of(w, candidate, base) for w in testing}
    known = {title: paired for title, paired in pairs.items() if paired is not None and paired.n >= FEWEST}
    diverged = {w["title"] for w in testing if count_diverged(w, candidate)}
    not_below = [title for title, paired in known.items() if paired.is_not_below and title not in diverged]
    above = [title for title, paired in known.items() if paired.low > 0 and title not in diverged]
    below = [title for title, paired in known.items() if paired.high < 0]
    reached = len(not_below) >= NOT_BELOW and len(above) >= ABOVE
    return (
        f"The aim was that {word(candidate)} is not below {word(base)} on {NOT_BELOW} workloads (lower end of the "
        f"interval above -{margin:g} point) and above it on {ABOVE} (lower end above 0). It is "
        f"{'' if reached else 'not '}reached: of {len(known)} workloads that test the choice, and have five seeds or "
        f"more, it is not below on {_list(not_below)}, above on {_list(above)}, and below on {_list(below)}.\n"
    )


def choice(record: Record) -> str:
    """Return how our settings compare on the workloads that choose; empty until two have enough seeds there."""
    choosing = [workload for workload in record["workloads"] if workload["name"] in record["chosen_on"]]
    means = {}
    for name in (*record["main"][1:], *RIVALS):
        pairs = [paired_of(workload, name, record["base"]) for workload in choosing]
        known = [paired.difference for paired in pairs if paired is not None and paired.n >= FEWEST]
        if len(known) == len(record["chosen_on"]):
            means[name] = mean(known)
    if len(means) < 2:
        return ""
    order = sorted(means, key=means.__getitem__, reverse=True)
    shown = ", ".join(f"{word(name)} {means[name]:+.1f}" for name in order)
    return f"Our settings on the workloads that choose, mean difference from {word(record['base'])}: {shown}.\n"


def variants_table(record: Record) -> str:
    """Return a row for every variant of every workload."""
    heads = ["workload", "variant", "lr", "score", "last round", "less the base", "effect", "seeds", "says"]
    lines = ["### Every variant\n", f"| {' | '.join(heads)} |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for workload in record["workloads"]:
        for variant in (v for v in workload["variants"] if v["runs"]):
            name = variant["name"]
            paired = None if name == record["base"] else paired_of(workload, name, record["base"])
            effect = "-" if paired is None or paired.effect is None else f"{paired.effect:+.2f}"
            cells = [workload["title"], word(name), f"{variant['lr']:g}", show_mean(workload, name)]
            cells += [show_mean(workload, name, last=True), show_paired(paired, count=False), effect]
            cells += [str(len(scores(workload, name))), says(workload, name, paired)]
            lines.append(f"| {' | '.join(cells)} |")
    note = "Effect: the mean difference over its standard deviation between seeds.\n"
    return "\n".join(lines) + f"\n\n{note}"


def rates(record: Record) -> str:
    """Return the learning rates that were tried."""
    lines = ["### Learning rates that were tried\n", "| workload | variant | chosen | tried: held-out score |"]
    lines.append("| --- | --- | ---: | --- |")
    for workload in record["workloads"]:
        for variant in (v for v in workload["variants"] if v["trials"]):
            shown = ", ".join(_trial(trials) for trials in _by_rate(variant["trials"]).items())
            lr = "not yet" if variant["lr"] is None else f"{variant['lr']:g}"
            lines.append(f"| {workload['title']} | {word(variant['name'])} | {lr} | {shown} |")
    return "\n".join(lines) + "\n"


def missing(record: Record) -> str:
    """Return what the rule still wants."""
    lines = []
    for workload in record["workloads"]:
        for variant in workload["variants"]:
            have, wanted = len(variant["runs"]), variant["seeds_wanted"]
            if variant["lr"] is None:
                lines.append(f"- {workload['title']}: {word(variant['name'])} {_why_not_run(variant)}.")
            elif have < wanted:
                least = record["rule"]["fewest"]
                why = (
                    f"has {have} of {least} seeds" if have < least else f"stopped at {have} seeds, the rule wants more"
                )
                lines.append(f"- {workload['title']}: {word(variant['name'])} {why}.")
    if record["not_begun"]:
        lines.append(f"- Not begun: {'; '.join(WORKLOADS[name].title for name in record['not_begun'])}.")
    return "### What is missing\n\n" + "\n".join(lines) + "\n" if lines else ""


def _why_not_run(variant: Record) -> str:
    if not variant["trials"]:
        return "was not run"
    return "has no learning rate yet" if any(score is not None for *_, score in variant["trials"]) else "only diverged"


def word(name: str) -> str:
    """Return a variant's name as sentences have it."""
    return WORDS.get(name, name)


def variant_of(workload: Record, name: str) -> Record:
    """Return a variant's part of a workload; one without runs if it has none."""
    return next((v for v in workload["variants"] if v["name"] == name), {"name": name, "runs": [], "trials": []})


def scores(workload: Record, name: str, *, last: bool = False) -> dict[int, float]:
    """Return a variant's scores by seed, in points, of the runs that did not diverge."""
    found = {}
    for run in variant_of(workload, name)["runs"]:
        tail = tail_score(workload["round"], run["score"], workload["rounds"]) if not run["error"] else None
        score = tail if not last or tail is None else run["score"][-1]
        if score is not None:
            found[run["seed"]] = 100 * score
    return found


def paired_of(workload: Record, name: str, base: str) -> Paired | None:
    """Return a variant's difference from the base; None if they have no seed in common."""
    return compare(scores(workload, name), scores(workload, base))


def show_mean(workload: Record, name: str, *, last: bool = False) -> str:
    """Return a mean score with half of its 95% interval."""
    values = list(scores(workload, name, last=last).values())
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "-"
    middle = mean(values)
    deviation = (sum((value - middle) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return f"{middle:.1f} ± {half_width(deviation, len(values)):.1f}"


def show_paired(paired: Paired | None, *, count: bool = True) -> str:
    """Return a mean difference with its 95% interval and, with `count`, the number of seeds."""
    if paired is None:
        return "-"
    interval = f" ({paired.low:+.1f} to {paired.high:+.1f})" if paired.n > 1 else ""
    return f"{paired.difference:+.1f}{interval}" + (f", {paired.n} seeds" if count else "")


def says(workload: Record, name: str, paired: Paired | None) -> str:
    """Return what a difference says, and how many runs diverged."""
    diverged = count_diverged(workload, name)
    told = "" if paired is None else paired.verdict
    return ", ".join(part for part in (told, f"{diverged} diverged" if diverged else "") if part) or "-"


def count_diverged(workload: Record, name: str) -> int:
    """Return how many of a variant's runs diverged."""
    return sum(bool(run["error"]) for run in variant_of(workload, name)["runs"])


def _by_rate(trials: Sequence[Sequence[Any]]) -> dict[float, list[float | None]]:
    found: dict[float, list[float | None]] = {}
    for lr, _, score in trials:
        found.setdefault(lr, []).append(score)
    return found


def _trial(trials: tuple[float, list[float | None]]) -> str:
    lr, found = trials
    return f"{lr:g}: {' and '.join('diverged' if score is None else f'{score:.1f}' for score in found)}"


def _list(titles: Sequence[str]) -> str:
    return f"{len(titles)} ({'; '.join(titles)})" if titles else "none"
