"""Prompts for a teacher that writes, read from data: as they stand there, or the beginnings of running texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from limbeck.core.check import require
from limbeck.data.chats import is_chat, question
from limbeck.data.read import field, read_rows
from limbeck.data.written import Prompt


def read_prompts(source: str | Path, tokenizer: Any, prompt_length: int) -> list[Prompt]:
    """The prompts of ``source`` (``data.read.read_rows``): rows with ``prompt``, conversations, or ``text``.

    A ``completion``, or an answer of the assistant's that ends a conversation, is not shown to the teacher: it is kept
    as the data's own. Rows with ``text`` give ``text_prompts``. Every error names file and line.
    """
    rows = iter(read_rows(source))
    where, first = next(rows)
    rows = chain([(where, first)], rows)
    if is_chat(first) or "prompt" in first:
        return [_prompt(row, where) for where, row in rows]
    return text_prompts((field(row, "text", str, where) for where, row in rows), tokenizer, prompt_length)


def text_prompts(texts: Iterable[str], tokenizer: Any, prompt_length: int) -> list[Prompt]:
    """The first ``prompt_length`` tokens of every text, of a short one its first half; the rest is the data's own.

    Texts are cut as they stand, before the space that the next word begins with. A text of a single token gives none.
    """
    require(prompt_length >= 1, f"--prompt-length {prompt_length}: expected at least 1 token")
    require(getattr(tokenizer, "is_fast", False), "texts are cut into prompts by tokenizers with a tokenizer.json only")
    found = list(_beginnings(texts, tokenizer, prompt_length))
    require(found, "the data holds no text of two tokens or more, so there is nothing to continue")
    return found


def _beginnings(texts: Iterable[str], tokenizer: Any, prompt_length: int) -> Iterator[Prompt]:
    for text in texts:
        spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        cut = min(prompt_length, len(spans) // 2)
        begins = text[: spans[cut][0]].rstrip() if cut else ""
        if begins:
            yield Prompt(begins, text[len(begins) :])


def _prompt(row: dict[str, Any], where: str) -> Prompt:
    if is_chat(row):
        return Prompt(*question(row, where))
    prompt = field(row, "prompt", str, where)
    require(prompt.strip(), f"{where}: the prompt is empty, so there is nothing to write about; remove the row")
    return Prompt(prompt, field(row, "completion", str, where) if "completion" in row else None)
