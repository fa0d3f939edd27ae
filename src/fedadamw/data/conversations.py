"""Conversations as tokens in a tokenizer's chat template, and which tokens are learned."""

from contextlib import suppress
from typing import Any

from fedadamw.models.loading import as_input_error
from fedadamw.validation import InputError, check, shorten

Ids = list[int]
Message = dict[str, Any]
CALLS = ("tool_calls", "function_call")
SAID = ("content", "reasoning_content", "reasoning", "thinking", *CALLS)  # by an assistant


def encode_conversation(tokenizer: Any, talk: object) -> tuple[Ids, Ids]:
    """Return tokens and marks of a conversation in the chat template; raises InputError if it cannot be used.

    Marked are the assistant's messages (content, reasoning, calls) as the template shows them, with the token that
    ends its turn. An empty message, or one that is not shown, has no marks.
    """
    messages = _read_messages(talk)
    text = _apply_template(tokenizer, messages)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
    check(bool(ids), "the chat template leaves it empty")
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    marks, at = [0] * len(ids), 0
    for i, message in enumerate(messages):
        if message["role"] == "assistant" and any(message.get(part) for part in SAID):
            start, end = _find_message(tokenizer, messages, i, text, at)
            if start == end:
                continue
            first, last = _find_tokens(offsets, start, end)
            ends_with_call = any(message.get(part) for part in CALLS) and ids[last - 1] in special
            stop = last if ends_with_call else min(last + 1, len(ids))
            marks[first:stop] = [1] * (stop - first)
            at = end
    return ids, marks


def encode_question(tokenizer: Any, talk: object) -> Ids:
    """Return the tokens of a conversation up to where the assistant answers; answers at its end are left out."""
    messages = _read_messages(talk)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    check(bool(messages), "nobody but the assistant says anything")
    with as_input_error("the chat template refuses a conversation"):
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    ids: Ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _read_messages(talk: Any) -> list[Message]:
    """Return the messages without their null values, which a column adds; a null content becomes ''."""
    is_valid = isinstance(talk, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str | None)
        for m in talk
    )
    if not is_valid or not talk:
        raise InputError(
            f"column 'messages' holds {shorten(talk)} where a list of role and content (a text) is expected"
        )
    return [{"content": "", **_without_null(message)} for message in talk]


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(part) for key, part in value.items() if part is not None}
    return [_without_null(part) for part in value] if isinstance(value, list) else value


def _apply_template(tokenizer: Any, talk: Any) -> str:
    with as_input_error("the chat template refuses a conversation"):
        return str(tokenizer.apply_chat_template(talk, tokenize=False))


def _find_message(tokenizer: Any, talk: list[Message], i: int, text: str, after: int) -> tuple[int, int]:
    """Return start and end of message i in a conversation's `text`: the part that another content would change.

    after: the end of the message before it.
    """
    other = next(chr(n) for n in range(0xE000, 0xF8FF) if chr(n) not in text)  # a private-use character
    changed = {**{name: part for name, part in talk[i].items() if name not in SAID}, "content": other}
    for following in (talk[i + 1 :], []):  # some templates refuse a tool's answer without its call
        with suppress(InputError):
            whole = text if following else _apply_template(tokenizer, talk[: i + 1])
            start, end = _find_difference(whole, _apply_template(tokenizer, [*talk[:i], changed, *following]))
            if text.startswith(whole[:end]):
                return _move_back(text, start, end, talk[i]["content"], after), end
    said = talk[i]["content"].strip()
    start = text.find(said, after)
    check(start >= 0, f"the chat template changes this message: {said[:60]!r}")
    return start, start + len(said)


def _find_difference(text: str, other: str) -> tuple[int, int]:
    """Return start and end of the part in which `text` differs from `other`."""
    start = _count_common(text, other)
    return start, len(text) - _count_common(text[start:][::-1], other[start:][::-1])


def _count_common(a: str, b: str) -> int:
    """Return the length of the common prefix of `a` and `b`."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def _move_back(text: str, start: int, end: int, said: str, after: int) -> int:
    """Return the start of `said`: `start` after blanks, or earlier if `text` has the beginning of `said` before it.

    This happens if the template itself writes the beginning, such as <think>.
    """
    shown, whole = ("".join(part.split()) for part in (text[start:end], said))
    missing, place = whole.removesuffix(shown) if shown else "", start
    while missing and place > after and (text[place - 1].isspace() or missing.endswith(text[place - 1])):
        place -= 1
        missing = missing.removesuffix(text[place])
    first = start if missing else place
    return first + len(text[first:end]) - len(text[first:end].lstrip())


def _find_tokens(offsets: list[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """Return the first token that overlaps the characters from `start` to `end`, and the one after the last."""
    first = next((token for token, (_, stop) in enumerate(offsets) if stop > start), len(offsets))
    return first, next((token for token in range(first, len(offsets)) if offsets[token][0] >= end), len(offsets))
