"""Conversations: read from every form, and one sentence for what is not one."""

from __future__ import annotations

import pytest

from limbeck.core.check import LimbeckError
from limbeck.data.chats import as_chat, is_chat

ASKED = {"role": "user", "content": "hi"}
SAID = {"role": "assistant", "content": "hello"}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, SAID]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        {"conversations": [ASKED, SAID]},
        {"prompt": [ASKED], "completion": [SAID]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": text} for text in "hi"]}, SAID]},
        {"messages": [{**ASKED, "name": None}, {**SAID, "tool_calls": None}]},
    ],
)  # fmt: skip
def test_one_conversation_in_every_form(row):
    assert is_chat(row)
    chat = as_chat(row, "d.jsonl:1")
    assert chat.messages == [ASKED, SAID]
    assert chat.taught == [False, True]


def test_what_is_learned():
    chat = as_chat({"messages": [SAID, ASKED, {**SAID, "weight": 0}, ASKED, {**SAID, "weight": 1}]}, "x")
    assert chat.taught == [False, False, False, False, True]
    assert all("weight" not in message for message in chat.messages[2:])
    chat = as_chat({"prompt": [ASKED, SAID, ASKED], "completion": [SAID]}, "x")
    assert chat.taught == [False, False, False, True]


def test_a_system_prompt_and_tools_beside_the_messages():
    tools = [{"type": "function", "function": {"name": "add"}}]
    chat = as_chat({"messages": [ASKED, SAID], "system": "be brief", "tools": '[{"type": "function"}]'}, "x")
    assert chat.messages[0] == {"role": "system", "content": "be brief"}
    assert (chat.taught, chat.tools) == ([False, False, True], [{"type": "function"}])
    assert as_chat({"messages": [ASKED, SAID], "tools": tools}, "x").tools == tools
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
    chat = as_chat({"messages": [ASKED, called, {"role": "tool", "content": "3"}, SAID]}, "x")
    assert (chat.taught, "content" in chat.messages[1]) == ([False, True, False, True], False)


def test_other_rows_are_not_conversations():
    assert not is_chat({"prompt": "a", "completion": "b"})
    assert not is_chat({"text": "a"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, r"d.jsonl:4: the field 'messages' must be a list of messages, but is \[\]"),
        ({"messages": "hi"}, "must be a list of messages, but is 'hi'"),
        ({"messages": ["hi"]}, r"d.jsonl:4: message 1 of 'messages' must be an object with 'role' and 'content'"),
        ({"messages": [{"role": "asistant", "content": "x"}]}, r"its 'role': .* did you mean 'assistant'"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "message 1 of 'conversations', its 'from': expected"),
        ({"messages": [ASKED, {"role": "assistant", "content": " "}]}, "'content' must be text that is not empty"),
        ({"messages": [ASKED, {"role": "assistant"}]}, "message 2 of 'messages': 'content' must be text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, SAID]}, "'content' must be text, but is"),
        ({"messages": [ASKED]}, "d.jsonl:4: the conversation has no answer of the assistant's to learn"),
        ({"messages": [SAID]}, "no answer of the assistant's"),
        ({"prompt": [ASKED]}, "the field 'completion' must be a list of messages, but is None"),
        ({"messages": [ASKED, SAID], "tools": "{"}, "the field 'tools' must be a list"),
        ({"messages": [ASKED, SAID], "tools": {"a": 1}}, "the field 'tools' must be a list"),
    ],
)
def test_what_is_wrong_is_named(row, message):
    with pytest.raises(LimbeckError, match=message):
        as_chat(row, "d.jsonl:4")
