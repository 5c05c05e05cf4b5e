"""Text by a teacher: written chunk by chunk, never twice, put together, filtered, and refused where settings differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_llms import tokenizer

from limbeck.core.check import LimbeckError
from limbeck.data.asked import read_prompts, text_prompts
from limbeck.data.pairs import read_pairs
from limbeck.data.written import Prompt, completion_of, distinct, finished, length, put_together, write_down

CHAT = [{"role": "user", "content": "good?"}]


def parrot(prompts, number):
    """Two texts per prompt, the second not ended."""
    return [[(f"{prompt} {number}", True), (f"{prompt} again", False)] for prompt in prompts]


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"word {n}", f"word {n} again") for n in range(count)]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_prompts_become_rows_in_order(tmp_path):
    given = [Prompt("a"), Prompt(CHAT), Prompt("b")]
    write_down(given, parrot, tmp_path, {"decode": "greedy"}, chunk=2)
    path = put_together(given, tmp_path)
    assert rows(path)[:2] == [
        {"prompt": "a", "completion": "a 0", "finished": True},
        {"prompt": "a", "completion": "a again", "finished": False},
    ]
    assert rows(path)[2]["messages"] == [*CHAT, {"role": "assistant", "content": f"{CHAT} 0"}]
    assert rows(path)[-2]["completion"] == "b 1"
    said = json.loads((tmp_path / "written.json").read_text())
    assert (said["settings"], said["prompts"], said["rows"], said["left_out"]) == ({"decode": "greedy"}, 3, 6, {})


def test_a_run_that_stops_goes_on_with_what_is_missing(tmp_path):
    asked: list[int] = []

    def tired(prompts, number):
        asked.append(number)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return parrot(prompts, number)

    with pytest.raises(KeyboardInterrupt):
        write_down(prompts(10), tired, tmp_path, {}, chunk=2)
    write_down(prompts(10), tired, tmp_path, {}, chunk=2)
    assert asked == [0, 1, 2, 2, 3, 4]
    whole = tmp_path / "whole"
    write_down(prompts(10), parrot, whole, {}, chunk=2)
    paths = [put_together(prompts(10), folder) for folder in (tmp_path, whole)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    write_down(prompts(10), None, tmp_path, {}, chunk=2)  # type: ignore[arg-type]  # nobody is asked


def test_processes_share_the_chunks(tmp_path):
    for rank in range(3):
        write_down(prompts(10), parrot, tmp_path, {}, chunk=2, share=(rank, 3))
    assert len(list((tmp_path / "parts").glob("0*.jsonl"))) == 5
    assert len(rows(put_together(prompts(10), tmp_path))) == 20


@pytest.mark.parametrize(
    ("given", "settings", "chunk", "what"),
    [
        (prompts(4), {"temperature": 0.5}, 2, "temperature was 1.0 and is now 0.5"),
        (prompts(5), {"temperature": 1.0}, 2, "prompts was 4 and is now 5"),
        ([*prompts(3), Prompt("x")], {"temperature": 1.0}, 2, "content was"),
        (prompts(4), {"temperature": 1.0}, 3, "chunk was 2 and is now 3"),
    ],
)
def test_text_of_other_settings_is_not_mixed_in(tmp_path, given, settings, chunk, what):
    write_down(prompts(4), parrot, tmp_path, {"temperature": 1.0}, chunk=2)
    with pytest.raises(LimbeckError, match=f"holds text by a teacher under other settings .*{what}"):
        write_down(given, parrot, tmp_path, settings, chunk=chunk)


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    texts = {
        "a": [("yes", True), ("yes", True), ("", True), (" \n", False)],
        "b": [("no no no no", True), ("n", False)],
    }
    given = [Prompt(name) for name in texts]
    write_down(given, lambda some, number: [texts[each] for each in some], tmp_path, {})
    path = put_together(given, tmp_path, [finished, length(2, 5), distinct()])
    assert [completion_of(row) for row in rows(path)] == ["yes"]
    left = json.loads((tmp_path / "written.json").read_text())["left_out"]
    assert left == {"empty": 2, "duplicate": 1, "too long": 1, "not finished": 1}
    words = put_together(given, tmp_path, [length(most=3, size=lambda text: len(text.split()))])
    assert [completion_of(row) for row in rows(words)] == ["yes", "yes", "n"]
    with pytest.raises(LimbeckError, match=r"nothing that the teacher wrote is left .*4 too short"):
        put_together(given, tmp_path, [length(100)])


def test_of_several_texts_the_one_nearest_to_the_data(tmp_path):
    write_down(prompts(3), parrot, tmp_path, {})
    path = put_together(prompts(3), tmp_path, nearest=lambda text, own: float(text == own))
    assert [completion_of(row) for row in rows(path)] == [f"word {n} again" for n in range(3)]
    write_down([Prompt("x")], parrot, tmp_path / "bare", {})
    with pytest.raises(LimbeckError, match="the prompt 'x' has no completion of its own to be near to"):
        put_together([Prompt("x")], tmp_path / "bare", nearest=lambda text, own: 0.0)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(LimbeckError, match="there are no prompts"):
        write_down([], parrot, tmp_path, {})
    with pytest.raises(LimbeckError, match="gave texts for 1 of 2 prompts"):
        write_down(prompts(2), lambda some, number: [[("a", True)]], tmp_path, {})
    write_down(prompts(2), parrot, tmp_path, {})
    part = tmp_path / "parts" / "000000.jsonl"
    part.write_text(part.read_text().splitlines()[0])
    with pytest.raises(LimbeckError, match=r"000000.jsonl: expected texts for 2 prompts, but got 1; delete the file"):
        put_together(prompts(2), tmp_path)


def test_half_characters_of_a_server_do_not_stop_a_run(tmp_path):
    write_down([Prompt("a")], lambda some, number: [[("x \ud83d y", True)]], tmp_path, {})
    assert rows(put_together([Prompt("a")], tmp_path))[0]["completion"] == "x ? y"


def test_an_unfinished_text_is_taught_without_an_end(tmp_path):
    path = tmp_path / "pairs.jsonl"
    lines = [{"prompt": "good", "completion": " film", "finished": done} for done in (True, False)]
    path.write_text("\n".join(map(json.dumps, lines)))
    ended, cut = read_pairs(path, tokenizer(), 8)
    end = tokenizer().eos_token_id
    assert ended.completion == [*cut.completion, end]
    assert end not in cut.completion


def test_prompts_of_data(tmp_path):
    path = tmp_path / "data.jsonl"
    answered = [*CHAT, {"role": "assistant", "content": "yes"}]
    lines = [
        {"prompt": "a", "completion": " b"},
        {"prompt": "a"},
        {"messages": answered},
        {"messages": CHAT},
        {"prompt": CHAT, "completion": answered[1:]},
        {"conversations": [{"from": "human", "value": "good?"}, {"from": "gpt", "value": "yes"}], "system": "Be."},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    found = read_prompts(path, tokenizer(), 4)
    system = Prompt([{"role": "system", "content": "Be."}, *CHAT], "yes")
    assert found == [Prompt("a", " b"), Prompt("a"), Prompt(CHAT, "yes"), Prompt(CHAT), *[Prompt(CHAT, "yes")], system]


def test_running_text_gives_its_beginnings(tmp_path):
    texts = ["good film book song plays", "good bad", "good"]
    found = text_prompts(texts, tokenizer(), 3)
    assert found == [Prompt("good film", " book song plays"), Prompt("good", " bad")]
    (tmp_path / "text.txt").write_text("\n".join(texts))
    assert read_prompts(tmp_path / "text.txt", tokenizer(), 3) == found
    with pytest.raises(LimbeckError, match="no text of two tokens or more"):
        text_prompts(["good"], tokenizer(), 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": " "}, ":1: the prompt is empty"),
        ({"prompt": 3}, ":1: the field 'prompt' must be a string"),
        ({"messages": []}, ":1: the field 'messages' must be a list of messages"),
        (
            {"messages": [{"role": "assistant", "content": "a"}]},
            ":1: there is nothing in front of the assistant's answer",
        ),
        ({"messages": [{"role": "user"}]}, ":1: message 1 of 'messages': 'content' must be text"),
        ({"messages": CHAT, "tools": [{}]}, ":1: the row has tools, which a teacher that writes is not given"),
        ({"other": "a"}, ":1: the field 'text' is missing"),
    ],
)
def test_prompts_that_are_none(tmp_path, line, message):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(line))
    with pytest.raises(LimbeckError, match=message):
        read_prompts(path, tokenizer(), 4)
