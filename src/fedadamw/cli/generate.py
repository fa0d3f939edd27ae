"""`fedadamw generate`: what a language model answers to prompts, before and after its training."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedadamw.cli.app import Settings, app, say
from fedadamw.cli.models import Best
from fedadamw.validation import check

if TYPE_CHECKING:
    from fedadamw.trained.generate import Base, Reply
    from fedadamw.trained.load import Trained


Answers = dict[str, str | int]  # to one prompt, by name


@app.command("generate", short_help="Ask a language model, before and after its training.")
def generate_command(
    where: Annotated[Path, typer.Argument(metavar="RUN_OR_DIR", help="A run, a model's folder, a .gguf file.")],
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; repeatable.")] = None,
    data: Annotated[str | None, typer.Option(metavar="FILE", help="A file of prompts, as `predict` takes it.")] = None,
    out: Annotated[Path | None, typer.Option(help="For --data: write to a new .jsonl file.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Length of the longest answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest token; above: drawn at random.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    ask_base: Annotated[bool, typer.Option("--base/--no-base", help="Also ask the model before its training.")] = True,  # noqa: FBT002
    on_bad: Annotated[
        Literal["error", "skip"], typer.Option(help="What to do with a prompt that cannot be used.")
    ] = "error",
    best: Best = False,  # noqa: FBT002
    settings: Settings = None,
) -> None:
    """Answer prompts with a language model, beside the answers of the model that it was trained from.

    With --data, each answer is one line of JSON: file, row, prompt, base, tuned, and right if the file has an answer.

    \b
    fedadamw generate runs/chat --prompt "What is a vector?" --prompt "And a matrix?"
    fedadamw generate runs/chat --data questions.csv --out answers.jsonl --max-tokens 32
    fedadamw generate chat-adapter --data questions.txt --temperature 0.7 --seed 1
    """
    from fedadamw.models.generation import Decoding
    from fedadamw.settings.load import Override, parse_override
    from fedadamw.trained.generate import ask_file, ask_prompts, generate, open_language_model
    from fedadamw.trained.predict import skip_bad
    from fedadamw.trained.prediction_file import JSON_LINES, check_new_file

    check((prompt is None) != (data is None), "give --prompt or --data")
    check(out is None or data is not None, "--out: is for --data")
    if out is not None:
        check_new_file(out, (JSON_LINES,))
    overrides: list[Override] = [("data.on_bad", "error"), *map(parse_override, settings or ())]
    trained = open_language_model(where, overrides, best=best)
    trained = skip_bad(trained) if on_bad == "skip" else trained
    samples = ask_prompts(trained, prompt or ()) if data is None else ask_file(trained, data)
    base = _choose_base(trained) if ask_base and trained.origin else None
    replies = generate(trained, samples, Decoding(max_tokens, temperature, seed), base)
    answers = (_name_answers(reply, "tuned" if trained.origin else "answer") for reply in replies)
    try:
        _tell(answers, out, on_one_line=data is not None)
    except KeyboardInterrupt:
        say("stopped" if out is None else f"stopped; {out} was not written")
        raise typer.Exit(130) from None


def _name_answers(reply: "Reply", tuned: str) -> Answers:
    """Return what is known of a reply by name; tuned: the name of the model's own answer."""
    known = {name: value for name, value in reply._asdict().items() if value is not None}
    return {tuned if name == "tuned" else name: value for name, value in known.items()}


def _tell(answers: Iterable[Answers], out: Path | None, *, on_one_line: bool) -> None:
    """Print the answers, or write them to `out`."""
    from fedadamw.trained.prediction_file import json_line, write_lines

    if out is not None:
        typer.echo(f"{out}: {write_lines(out, map(json_line, answers)):,} answers")
    elif on_one_line:
        for answer in answers:
            typer.echo(json_line(answer))
    else:
        _print(answers)


def _choose_base(trained: "Trained") -> "Base | None":
    """Return the model before its training; if it is not known, say why."""
    from fedadamw.trained.generate import find_base

    base = find_base(trained)
    if isinstance(base, str):
        say(f"the model before its training is not asked: {base}")
        return None
    return base


def _print(answers: Iterable[Answers]) -> None:
    """Print each prompt with its answers below it."""
    from fedadamw.io.escaping import escape_text

    for i, answer in enumerate(answers):
        if i:
            typer.echo("")
        for name, words in answer.items():
            lines = [escape_text(line) for line in str(words).strip().splitlines()]
            typer.echo(f"{name:<7} " + f"\n{' ' * 8}".join(lines))
