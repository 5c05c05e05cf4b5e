"""Conversations, read from the ways in which they are written.

A row of data is a conversation if it has ``messages`` (OpenAI: ``role`` and ``content``; ``weight`` 0 for a turn that
is read and not learned), ``conversations`` (ShareGPT: ``from`` and ``value``), or ``prompt`` and ``completion`` that
are lists of messages, of which the completion's alone are learned. ``tools`` and ``system`` of the row are handed on.
``data.turns`` makes token ids of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from reprlib import repr as short
from typing import Any, NamedTuple

from limbeck.core.check import LimbeckError, one_of, require

ASSISTANT = "assistant"
ROLES = {name: name for name in ("system", "developer", "user", ASSISTANT, "tool", "function")}
ROLES |= {"human": "user", "gpt": ASSISTANT, "chatgpt": ASSISTANT, "bot": ASSISTANT, "model": ASSISTANT}
ROLES |= {"observation": "tool", "function_response": "tool"}


class Chat(NamedTuple):
    """Messages with ``role`` and ``content``, which of them are to be learned, and where they were read."""

    messages: list[dict[str, Any]]
    taught: list[bool]
    where: str
    tools: list[Any] | None = None


def is_chat(row: dict[str, Any]) -> bool:
    """Whether a row of data is a conversation."""
    return "messages" in row or "conversations" in row or isinstance(row.get("prompt"), list)


def as_chat(row: dict[str, Any], where: str) -> Chat:
    """The conversation in a row of data; ``where`` is its file and line. Raises where there is nothing to learn."""
    if "messages" not in row and "conversations" not in row:
        asked, said = _messages(row, "prompt", where), _messages(row, "completion", where)
        taught = [False] * len(asked) + _taught(said)
        messages = asked + said
    else:
        messages = _messages(row, "messages" if "messages" in row else "conversations", where)
        taught = _taught(messages)
    if isinstance(row.get("system"), str) and messages[0]["role"] != "system":
        messages, taught = [{"role": "system", "content": row["system"]}, *messages], [False, *taught]
    taught[0] = False  # nothing was asked before it, so no prompt leads to it
    require(
        any(taught), f"{where}: the conversation has no answer of the assistant's to learn; remove the row, or add one"
    )
    return Chat(messages, taught, where, _tools(row.get("tools"), where))


def question(row: dict[str, Any], where: str) -> tuple[list[dict[str, Any]], str | None]:
    """The messages of a row of data up to an answer of the assistant's that ends them, and that answer if there is one.

    Raises where nothing is asked, and for tools, which a teacher that writes is not given.
    """
    require(not row.get("tools"), f"{where}: the row has tools, which a teacher that writes is not given; leave it out")
    name = next(name for name in ("messages", "conversations", "prompt") if name in row)
    messages = _messages(row, name, where)
    messages += _messages(row, "completion", where) if name == "prompt" and row.get("completion") else []
    if isinstance(row.get("system"), str) and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": row["system"]})
    answer = messages.pop()["content"] if messages[-1]["role"] == ASSISTANT else None
    require(messages, f"{where}: there is nothing in front of the assistant's answer, so nothing is asked")
    return messages, answer


def _messages(row: dict[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    value = row.get(name)
    require(
        isinstance(value, list) and value,
        f"{where}: the field {name!r} must be a list of messages, but is {short(value)}",
    )
    return [_message(one, f"{where}: message {number} of {name!r}") for number, one in enumerate(value or [], 1)]


def _message(one: Any, where: str) -> dict[str, Any]:
    require(isinstance(one, dict), f"{where} must be an object with 'role' and 'content', but is {short(one)}")
    names = ("from", "value") if "from" in one else ("role", "content")
    rest = {key: value for key, value in one.items() if key not in names and value is not None}
    role = ROLES[one_of(str(one.get(names[0])), ROLES, f"{where}, its {names[0]!r}")]
    content = _text(one.get(names[1]))
    called = role == ASSISTANT and "tool_calls" in rest
    if called and content is None:
        return {"role": role, **rest}
    empty = role == ASSISTANT and not called and not str(content).strip()
    require(
        isinstance(content, str) and not empty,
        f"{where}: {names[1]!r} must be text{' that is not empty' if empty else ''}, but is {short(one.get(names[1]))}",
    )
    return {"role": role, "content": content, **rest}


def _text(content: Any) -> Any:
    """Content given in parts, as one text; anything else, pictures included, as it is, for the caller to refuse."""
    parts = content if isinstance(content, list) else []
    if parts and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        return "".join(part["text"] for part in parts)
    return content


def _taught(messages: Sequence[dict[str, Any]]) -> list[bool]:
    return [message["role"] == ASSISTANT and message.pop("weight", 1) != 0 for message in messages]


def _tools(tools: Any, where: str) -> list[Any] | None:
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except json.JSONDecodeError as error:
            raise LimbeckError(f"{where}: the field 'tools' must be a list, but {error.msg}") from None
    require(not tools or isinstance(tools, list), f"{where}: the field 'tools' must be a list, but is {short(tools)}")
    return tools or None
