"""Prompts for a teacher that writes, read from data: as they stand there, or the beginnings of running texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from limbeck.core.check import require
from limbeck.data.read import field, files, read_jsonl, read_text
from limbeck.data.written import Prompt


def read_prompts(source: str | Path, tokenizer: Any, prompt_length: int) -> list[Prompt]:
    """The prompts of ``source``: a ``.jsonl`` file or folder whose rows have ``prompt`` or ``messages``, or text.

    A ``completion``, or an answer of the assistant's that ends the messages, is not shown to the teacher: it is kept as
    the data's own. Running text (``read_text``) gives ``text_prompts``. Every error names file and line.
    """
    path = Path(source)
    if path.exists() and (path.is_dir() or path.suffix == ".jsonl"):
        rows = [(f"{file}:{number}", row) for file in files(path, (".jsonl",)) for number, row in read_jsonl(file)]
        if any(name in rows[0][1] for name in ("prompt", "messages")):
            return [_prompt(row, where) for where, row in rows]
    return text_prompts(read_text(source), tokenizer, prompt_length)


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
    if "messages" in row:
        return _chat(field(row, "messages", list, where), where)
    if isinstance(row.get("prompt"), list):
        return _chat([*row["prompt"], *(row["completion"] if isinstance(row.get("completion"), list) else [])], where)
    prompt = field(row, "prompt", str, where)
    require(prompt.strip(), f"{where}: the prompt is empty, so there is nothing to write about; remove the row")
    return Prompt(prompt, field(row, "completion", str, where) if "completion" in row else None)


def _chat(messages: list[Any], where: str) -> Prompt:
    """Messages up to an answer that ends them."""
    for number, message in enumerate(messages):
        whole = isinstance(message, dict) and all(isinstance(message.get(name), str) for name in ("role", "content"))
        require(whole, f"{where}: message {number + 1} must have a 'role' and a 'content' that are strings")
    answer = messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else None
    asked = [dict(message) for message in (messages if answer is None else messages[:-1])]
    require(asked, f"{where}: there are no messages to answer; remove the row")
    return Prompt(asked, answer)
