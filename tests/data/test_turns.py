"""The assistant's turns, and nothing else, are learned: for every way in which templates and tokenizers are built."""

from __future__ import annotations

import pytest
from chat_tokenizers import BRACKETS, CHATML, COUNTING, MARKED, SPACED, THINKING, by_bytes, by_pieces

from limbeck.core.check import LimbeckError
from limbeck.data.chats import as_chat
from limbeck.data.turns import chat_rows, use_template

TWO = [("user", "What is the capital?"), ("assistant", "Paris."), ("user", "And of Spain?"), ("assistant", "Madrid")]
WITH_SYSTEM = [("system", "You are brief."), *TWO]


def chat(turns, **row):
    return as_chat({"messages": [{"role": role, "content": content} for role, content in turns], **row}, "d.jsonl:7")


def learned(turns, tokenizer, **row):
    """The stretches of text that are learned, and the whole text."""
    (found,) = chat_rows([chat(turns, **row)], tokenizer)
    stretches, before = [], False
    for token, kept in zip(found.ids.tolist(), found.keep.tolist(), strict=True):
        if kept and not before:
            stretches.append([])
        if kept:
            stretches[-1].append(token)
        before = kept
    return [tokenizer.decode(one) for one in stretches], tokenizer.decode(found.ids.tolist())


@pytest.mark.parametrize(
    ("tokenizer", "turns", "expected"),
    [
        (by_bytes(CHATML), WITH_SYSTEM, ["Paris.<|im_end|>", "Madrid<|im_end|>"]),
        (by_bytes(MARKED), WITH_SYSTEM, ["Paris.<|im_end|>", "Madrid<|im_end|>"]),
        (by_bytes(THINKING), WITH_SYSTEM, ["Paris.<|im_end|>", "<think>\n\n</think>\n\nMadrid<|im_end|>"]),
        (by_pieces(BRACKETS), TWO, ["Paris. </s>", "Madrid </s>"]),
        (by_bytes(CHATML), [*TWO, ("user", "Thanks!")], ["Paris.<|im_end|>", "Madrid<|im_end|>"]),
        (by_bytes(THINKING), [*TWO, ("user", "Thanks!")], ["Paris.<|im_end|>", "Madrid<|im_end|>"]),
        (by_bytes(CHATML), [("assistant", "hello"), *TWO], ["Paris.<|im_end|>", "Madrid<|im_end|>"]),
        (by_bytes(MARKED), [("assistant", "hello"), *TWO], ["Paris.<|im_end|>", "Madrid<|im_end|>"]),
        (by_bytes(CHATML), [TWO[0], ("assistant", "user"), ("assistant", "x")], ["user<|im_end|>", "x<|im_end|>"]),
    ],
)  # fmt: skip
def test_the_assistants_turns_alone_are_learned(tokenizer, turns, expected):
    found, whole = learned(turns, tokenizer)
    assert found == expected
    rendered = tokenizer.apply_chat_template(chat(turns).messages, tokenize=True, return_dict=False)
    assert whole == tokenizer.decode(rendered)


@pytest.mark.parametrize(("template", "kind"), [(CHATML, by_bytes), (MARKED, by_bytes), (BRACKETS, by_pieces)])
def test_a_prompt_is_encoded_as_it_would_be_to_ask_for_the_answer(template, kind):
    tokenizer = kind(template)
    (found,) = chat_rows([chat(TWO)], tokenizer)
    asked = tokenizer.apply_chat_template(
        chat(TWO).messages[:3], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    starts = [n for n in range(1, len(found.keep)) if found.keep[n] and not found.keep[n - 1]]
    assert found.ids[: starts[-1]].tolist() == list(asked)


def test_turns_that_are_not_to_be_learned_are_read():
    for template in (CHATML, MARKED):
        tokenizer = by_bytes(template)
        messages = [{"role": role, "content": content} for role, content in TWO]
        messages[1]["weight"] = 0
        (found,) = chat_rows([as_chat({"messages": messages}, "x")], tokenizer)
        assert tokenizer.decode(found.ids[found.keep].tolist()) == "Madrid<|im_end|>"
        assert "Paris" in tokenizer.decode(found.ids.tolist())


def test_the_plain_layout_is_said_and_stays_with_the_tokenizer(tmp_path):
    tokenizer = by_bytes(None)
    assert "no chat template" in use_template(tokenizer)
    assert use_template(tokenizer) is None
    found, whole = learned(WITH_SYSTEM, tokenizer)
    assert found == ["Paris.<|end|>", "Madrid<|end|>"]
    assert whole == (
        "System:\nYou are brief.\n\nUser:\nWhat is the capital?\n\nAssistant:\nParis.<|end|>"
        "\n\nUser:\nAnd of Spain?\n\nAssistant:\nMadrid<|end|>"
    )
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    asked = again.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True)
    assert asked == "User:\nhi\n\nAssistant:\n"


def test_the_plain_layout_begins_as_the_tokenizer_begins():
    from tokenizers.processors import TemplateProcessing

    tokenizer = by_pieces(None)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    use_template(tokenizer)
    _, whole = learned(TWO, tokenizer)
    assert whole.startswith("<s>")
    bare = by_pieces(None)
    bare.eos_token = None
    assert "answers have no end" in use_template(bare)


def test_a_template_that_no_prefix_can_be_told_from_is_refused():
    with pytest.raises(LimbeckError, match=r"d.jsonl:7: the chat template writes message 2 differently.*generation"):
        learned(TWO, by_bytes(COUNTING))


def test_a_prompt_that_runs_into_its_answer_is_refused():
    with pytest.raises(LimbeckError, match=r"d.jsonl:7: the tokenizer joins the end of a prompt with the answer"):
        learned([("user", "hi"), ("assistant", "there")], by_bytes(SPACED))


def test_what_a_template_refuses_is_one_sentence():
    with pytest.raises(LimbeckError, match=r"d.jsonl:7: .* refuses the conversation: only user and assistant roles"):
        learned(WITH_SYSTEM, by_pieces(BRACKETS))


def test_marks_that_hold_nothing_are_refused():
    nothing = "{% for m in messages %}{{ m['content'] }}{% generation %}{% endgeneration %}{% endfor %}"
    with pytest.raises(LimbeckError, match="marks hold no text"):
        learned(TWO, by_bytes(nothing))
    one = "{% for m in messages %}{{ m['content'] }}{% if loop.last %}{% generation %}x{% endgeneration %}{% endif %}"
    messages = [{"role": role, "content": content, "weight": 0} for role, content in TWO[:2]] + [
        {"role": role, "content": content} for role, content in TWO
    ]
    with pytest.raises(LimbeckError, match="marks 1 of 3 turns"):
        list(chat_rows([as_chat({"messages": messages}, "x")], by_bytes(one + "{% endfor %}")))


def test_many_conversations_come_in_order():
    tokenizer = by_bytes(CHATML)
    many = [chat([("user", f"hi {n}"), ("assistant", f"hello {n}")]) for n in range(600)]
    said = [tokenizer.decode(found.ids[found.keep].tolist()) for found in chat_rows(many, tokenizer)]
    assert said == [f"hello {n}<|im_end|>" for n in range(600)]
