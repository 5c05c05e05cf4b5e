"""Requests in OpenAI's protocol, and what their replies say, once it is known to be whole and true.

A reply that is cut, malformed or cannot be true (another number of choices than asked for, a probability that is not
one) is a ``Fault``. Whoever asks decides whether to ask again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from limbeck.core.check import require
from limbeck.sources.responses import Usage

Api = Literal["chat", "completions"]
Prompt = str | Sequence[Mapping[str, str]]
ENDED = ("stop", "eos", "end_turn", "stop_sequence")  # finish reasons of a text that its writer ended
SLACK = 0.02  # servers round log-probabilities; a sum of probabilities may exceed 1 by so much


class Fault(Exception):
    """A reply that is of no use: why, how long the server asks to wait, and whether it is only busy or says untruth."""

    def __init__(self, reason: str, wait: float | None = None, busy: bool = False, untrue: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.busy, self.untrue = wait, busy, untrue


class Request(NamedTuple):
    """What to post where, and how to read the reply; ``read`` raises ``Fault``."""

    path: Literal["chat/completions", "completions"]
    body: Mapping[str, Any]
    read: Callable[[Mapping[str, Any]], Any]


class Said(NamedTuple):
    """A text that a model wrote, and whether it ended it; a text cut by a limit of tokens or a filter did not end."""

    text: str
    finished: bool


class Name(NamedTuple):
    """A token as a server names it: a string and, in the chat API, its bytes."""

    text: str
    raw: bytes | None = None


class Heard(NamedTuple):
    """A token of a text, its log-probability, and the likeliest tokens in its place (the token may be among them)."""

    name: Name
    logprob: float
    top: tuple[tuple[Name, float], ...]


def write_request(model: str, prompt: Prompt, api: Api, settings: Mapping[str, Any], top: int = 0) -> Request:
    """Ask for continuations of a text or answers to messages; ``read`` gives the ``settings["n"]`` (1) ``Said``.

    ``settings`` are fields of the request as the protocol names them. With ``top`` the reply is read as one list of
    ``Heard`` per choice instead; that is for the chat API.
    """
    count, body = int(settings.get("n", 1)), {"model": model, **settings}
    if api == "completions":
        require(
            isinstance(prompt, str), "the completions API continues plain text, but a prompt is a chat; ask by chat"
        )
        return Request("completions", {**body, "prompt": prompt}, partial(read_texts, count=count))
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(map(dict, prompt))
    body["messages"] = messages
    if not top:
        return Request("chat/completions", body, partial(read_texts, count=count))
    return Request(
        "chat/completions", {**body, "logprobs": True, "top_logprobs": top}, partial(read_spoken, count=count)
    )


def echo_request(model: str, ids: Sequence[int], top: int, settings: Mapping[str, Any] | None = None) -> Request:
    """Ask how likely each token of a text is; ``read`` gives one ``Heard`` per token but the first, which has None."""
    body = {"model": model, "prompt": list(ids), "echo": True, "logprobs": top, "max_tokens": 0, **(settings or {})}
    return Request("completions", body, partial(read_echo, count=len(ids)))


def read_texts(reply: Mapping[str, Any], count: int) -> list[Said]:
    """The texts of a reply of ``count`` choices, in the order of their index."""
    return [Said(_text(choice), choice.get("finish_reason") in ENDED) for choice in choices(reply, count)]


def read_spoken(reply: Mapping[str, Any], count: int) -> list[tuple[Said, list[Heard]]]:
    """The texts of a chat's choices, each with its tokens."""
    texts = read_texts(reply, count)
    return [(said, _spoken(choice)) for said, choice in zip(texts, choices(reply, count), strict=True)]


def read_echo(reply: Mapping[str, Any], count: int) -> list[Heard | None]:
    """The ``count`` tokens of a text that was sent, as ``echo`` and ``logprobs`` give them; what follows is cut."""
    (choice,) = choices(reply, 1)
    said = _field(choice, "logprobs", dict, "log-probabilities; take a server that knows echo and logprobs")
    names, values, tops = (
        _field(said, name, list, f"a list of {name}") for name in ("tokens", "token_logprobs", "top_logprobs")
    )
    if not len(names) == len(values) == len(tops) >= count:
        raise Fault(f"expected {count} tokens, but got lists of {len(names)}, {len(values)}, {len(tops)}", untrue=True)
    heard: list[Heard | None] = [None]
    for name, value, top in list(zip(names, values, tops, strict=True))[1:count]:
        if not isinstance(top, dict):
            raise Fault("expected the likeliest tokens at every position, but some have none", untrue=True)
        heard.append(_heard(Name(str(name)), value, [(Name(str(text)), each) for text, each in top.items()]))
    return heard


def choices(reply: Mapping[str, Any], count: int) -> list[Mapping[str, Any]]:
    """The choices of a reply in order: ``count`` of them, numbered from 0."""
    found = _field(reply, "choices", list, "choices")
    numbers = [choice.get("index", 0) if isinstance(choice, dict) else None for choice in found]
    if sorted(map(str, numbers)) != sorted(map(str, range(count))):
        hint = "; not every server knows how to give several, ask for one" if count > 1 else ""
        raise Fault(f"expected {count} choices, but got {len(found)} (numbered {numbers}){hint}", untrue=True)
    return [choice for _, choice in sorted(zip(numbers, found, strict=True), key=lambda pair: pair[0] or 0)]


def usage(reply: Mapping[str, Any]) -> Usage:
    """The tokens that a reply says it cost."""
    said = reply.get("usage")
    numbers = [said.get(f"{part}_tokens") if isinstance(said, dict) else None for part in ("prompt", "completion")]
    read, wrote = (number if type(number) is int and number >= 0 else -1 for number in numbers)
    return Usage() if -1 in (read, wrote) else Usage(read, wrote, True)


def _text(choice: Mapping[str, Any]) -> str:
    if "message" not in choice:
        return _field(choice, "text", str, "a text")
    message = _field(choice, "message", dict, "a message")
    return "" if message.get("content") is None else _field(message, "content", str, "a text")  # None: it refused


def _spoken(choice: Mapping[str, Any]) -> list[Heard]:
    said = _field(choice, "logprobs", dict, "log-probabilities; take a server that knows top_logprobs")
    heard = []
    for token in _field(said, "content", list, "a list of tokens"):
        if not isinstance(token, dict) or not isinstance(token.get("top_logprobs"), list):
            raise Fault("expected a token with its top_logprobs", untrue=True)
        top = [(_name(other), other.get("logprob")) for other in token["top_logprobs"] if isinstance(other, dict)]
        heard.append(_heard(_name(token), token.get("logprob"), top))
    return heard


def _name(token: Mapping[str, Any]) -> Name:
    raw = token.get("bytes")
    try:
        return Name(str(token.get("token")), None if raw is None else bytes(raw))
    except (TypeError, ValueError):
        raise Fault(f"expected the bytes of a token, but got {str(raw)[:40]}", untrue=True) from None


def _heard(name: Name, logprob: Any, top: Sequence[tuple[Name, Any]]) -> Heard:
    """A token, if what is said of it can be true."""
    values = [logprob, *(value for _, value in top)]
    if not all(isinstance(v, int | float) and math.isfinite(v) and v <= SLACK for v in values):
        odd = next(v for v in values if not (isinstance(v, int | float) and math.isfinite(v) and v <= SLACK))
        raise Fault(f"expected the log-probability of a token, a number of at most 0, but got {odd!r}", untrue=True)
    mass = sum(math.exp(value) for value in dict(top).values())
    if not top or mass > 1 + SLACK:
        raise Fault(f"expected probabilities that sum to at most 1, but got {len(top)} of sum {mass:.4g}", untrue=True)
    return Heard(name, float(logprob), tuple((each, float(value)) for each, value in top))


def _field(values: Mapping[str, Any], name: str, kind: type, what: str) -> Any:
    value = values.get(name)
    if not isinstance(value, kind):
        raise Fault(f"expected {what}, but the reply holds {type(value).__name__} as {name!r}", untrue=True)
    return value
