"""Conversations as rows of token ids: through the tokenizer's chat template, loss on the assistant's turns alone.

Which tokens are the assistant's is told by the template's ``{% generation %}`` marks where it has them. Else the
conversation is rendered up to each turn, as it would be to ask for that turn, and through it. That both are prefixes of
the whole is checked, in text and in tokens; where they are not, the row is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from limbeck.core.check import LimbeckError, first_line, require
from limbeck.data.chats import ASSISTANT, Chat
from limbeck.data.packing import Row, row

MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
CHUNK = 256  # conversations per call of the tokenizer, which splits a list over its threads

PLAIN = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{{ message['role'] | capitalize }}:{{ '\\n' }}{{ message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:\\n' }}{% endif %}"
)
"""The layout for tokenizers without a chat template: ``User:``, a line break, the text; answers end in end-of-text."""


def use_template(tokenizer: Any) -> str | None:
    """Give ``tokenizer`` the plain layout as its chat template if it has none, and say so; it is saved along with it.

    The layout begins with the beginning-of-text token where the tokenizer puts one before any text.
    """
    if getattr(tokenizer, "chat_template", None):
        return None
    first = tokenizer("a")["input_ids"][:1]
    begins = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
    tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + PLAIN
    note = "the tokenizer has no chat template; conversations are laid out as 'User:', 'Assistant:' and their text"
    return note + ("" if tokenizer.eos_token else ", and as it has no end-of-text token either, answers have no end")


def chat_rows(chats: Iterable[Chat], tokenizer: Any) -> Iterator[Row]:
    """Each conversation as token ids, the assistant's turns kept; see ``use_template`` for tokenizers without one."""
    source = iter(chats)
    while chunk := list(islice(source, CHUNK)):
        yield from encoded([spoken(chat, tokenizer) for chat in chunk], tokenizer)


class Spoken(NamedTuple):
    """A conversation as text, where in it the learned turns begin and end, and how far a token may reach over."""

    text: str
    turns: list[tuple[int, int]]
    where: str
    reach: int


def encoded(chats: Sequence[Spoken], tokenizer: Any) -> Iterator[Row]:
    """Token ids, and those of each turn: what the text through it has and the text up to it has not."""
    texts = [chat.text[:at] for chat in chats for at in (len(chat.text), *(at for turn in chat.turns for at in turn))]
    lists = iter(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
    for chat in chats:
        ids = next(lists)
        keep = np.zeros(len(ids), dtype=bool)
        for _ in chat.turns:
            first, last = next(lists), next(lists)
            begin, end = _common(ids, first), _common(ids, last)
            require(
                begin >= len(first) - chat.reach and end >= len(last) - 1,
                f"{chat.where}: the tokenizer joins the end of a prompt with the answer behind it, so a model that is "
                "asked would write other tokens; give a chat template that parts them by a special token or a line "
                "break",
            )
            keep[begin:end] = True
        yield row(ids, keep)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two lists have in common from the start."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def spoken(chat: Chat, tokenizer: Any) -> Spoken:
    """The conversation as text; a turn ends with the token that ends it, for nobody writes on after that."""
    template = tokenizer.get_chat_template(tools=chat.tools)
    marked = bool(MARKS.search(template))
    if marked:
        text, turns = _marked(chat, tokenizer, template)
    else:
        text = _apply(chat, len(chat.messages), tokenizer)
        turns = [_turn(chat, number, text, tokenizer) for number, taught in enumerate(chat.taught) if taught]
    ends = tuple(token for token in tokenizer.all_special_tokens if token)
    cut = [(begin, begin + len(text[begin:end].rstrip())) for begin, end in turns]
    turns = [new if text[: new[1]].endswith(ends) else old for old, new in zip(turns, cut, strict=True)]
    return Spoken(text, turns, chat.where, reach=int(marked))


def _marked(chat: Chat, tokenizer: Any, template: str) -> tuple[str, list[tuple[int, int]]]:
    """By the template's marks, which may begin within a token; a mark for each turn if some are not to be learned.

    ``return_assistant_tokens_mask`` of transformers is not used: where a mark ends in white space that a token's
    offsets leave out, it takes everything to the end of the conversation.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    names = {**tokenizer.special_tokens_map, "tools": chat.tools}
    with _template_of(chat):
        rendered: Any = render_jinja_template(
            [chat.messages], chat_template=template, return_assistant_tokens_mask=True, **names
        )
    (text,), (turns,) = rendered
    said = [taught for taught, one in zip(chat.taught, chat.messages, strict=True) if one["role"] == ASSISTANT]
    if not all(said):
        require(
            len(turns) == len(said),
            f"{chat.where}: not all turns of the assistant are to be learned, but the chat template marks {len(turns)} "
            f"of {len(said)} turns; leave the others out",
        )
        turns = [turn for turn, taught in zip(turns, said, strict=True) if taught]
    require(any(a < b for a, b in turns), f"{chat.where}: the chat template's marks hold no text; give another one")
    return text, [(a, b) for a, b in turns if a < b]


def _turn(chat: Chat, number: int, whole: str, tokenizer: Any) -> tuple[int, int]:
    """Where message ``number`` begins and ends in ``whole``, by rendering what stands before it, and it as the last.

    Some templates (Qwen3) write an empty thought before the last answer only. Then the answer is looked for behind its
    prompt, and ends as it does where it is the last.
    """
    head = _apply(chat, number, tokenizer, add_generation_prompt=True)
    through = _apply(chat, number + 1, tokenizer)
    if whole.startswith(head) and through.startswith(head):
        if whole.startswith(through):
            return len(head), len(through)
        content = str(chat.messages[number].get("content", "")).strip()
        thought, found, end = through[len(head) :].partition(content)
        at = whole.find(content, len(head))
        between = whole[len(head) : at].strip()
        if content and found and at >= 0 and between in ("", thought.strip()):
            at += len(content)
            if whole.startswith(end, at):
                return len(head), at + len(end)
    raise LimbeckError(
        f"{chat.where}: the chat template writes message {number + 1} differently once others follow, so what the "
        "assistant said cannot be told apart; give a template with {% generation %} marks, or one turn per row"
    )


def _apply(chat: Chat, count: int, tokenizer: Any, **settings: Any) -> str:
    """The first ``count`` messages as text."""
    with _template_of(chat):
        return tokenizer.apply_chat_template(chat.messages[:count], tools=chat.tools, tokenize=False, **settings)


@contextmanager
def _template_of(chat: Chat) -> Iterator[None]:
    """Whatever a template raises or stumbles over becomes one sentence."""
    try:
        yield
    except Exception as error:
        raise LimbeckError(
            f"{chat.where}: the tokenizer's chat template refuses the conversation: {first_line(error)}"
        ) from error
