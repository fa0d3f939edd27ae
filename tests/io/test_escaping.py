"""Words from data, models and settings are words wherever they stand."""

import json
import sys
from dataclasses import replace

import pytest
import yaml
from support.studies import LAST_IS_NONE, study_of

from fedadamw.cli import tables
from fedadamw.cli.app import say
from fedadamw.io.escaping import escape_html, escape_markdown, escape_script, escape_text
from fedadamw.report.study_table import to_markdown
from fedadamw.study import results
from fedadamw.study.progress import StudyProgress
from fedadamw.study.tune import write_tuned
from fedadamw.study.workers import EndedRun


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("\x1b[31mred\x07\r", r"\x1b[31mred\x07\r"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\u2028\u202e\x9b\x00", r"\u2028\u202e\x9b\x00"),
        ("\ud800 \ufffe \U0001ffff", r"\ud800 \ufffe \U0001ffff"),
        ("naïve 猫 👩‍🔬 می‌خواهم", "naïve 猫 👩‍🔬 می‌خواهم"),
    ],
)
def test_terminal_control_characters_are_escaped_and_letters_kept(given, shown):
    assert escape_text(given) == shown
    escape_text(given).encode()


def test_no_text_can_end_a_script():
    words = {"<!--<script>": ["</script>", "&amp;", "\u2028", float("nan")]}
    text = escape_script(words)
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text) == {"<!--<script>": ["</script>", "&amp;", "\u2028", None]}
    assert escape_html("<b>'\"&\x1b") == r"&lt;b&gt;&#x27;&quot;&amp;\x1b"


def test_no_text_can_break_a_markdown_cell():
    assert escape_markdown("a|b `c` *d* [e](f) <g>\n---") == r"a\|b \`c\` \*d\* \[e\](f) \<g\>\\n---"
    assert escape_markdown("weight_decay _x_") == r"weight_decay \_x\_"


ODD = "[/x] [bold]\x1b[31m|\n"


def test_names_with_markup_are_shown_literally(tmp_path, capsys, monkeypatch):
    (run,) = study_of(tmp_path, fedavg=LAST_IS_NONE)
    odd = replace(run, label={"algorithm": ODD})
    tables.print_grid(["variant", ODD], [[ODD, ODD + "\\"]])
    say(f"error: {ODD}")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with StudyProgress([odd], quiet=False) as progress:
        progress.update([odd], [])
        progress.update([], [EndedRun(odd, f"failed: {ODD}")])
    said = capsys.readouterr()
    assert said.out.count(r"[/x] [bold]\x1b[31m|\n") >= 4
    assert r"error: [/x] [bold]\x1b[31m|" in said.err
    assert "\x1b[31m" not in said.out + said.err
    table = to_markdown(results.collect_results("digits", [odd]))
    assert table.splitlines()[2].startswith(r"| \[/x\] \[bold\]\\x1b\[31m\|\\n | 0.1 | - |")


def test_recipe_name_cannot_add_settings_to_a_tuned_recipe(tmp_path):
    recipe = tmp_path / "a\nseed: 7\n#.yaml"
    recipe.write_text("seed: 3\n")
    path = write_tuned(str(recipe), [], [], tmp_path)
    assert yaml.safe_load(path.read_text())["seed"] == 3
