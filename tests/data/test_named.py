"""Log-probabilities of a served model, over HTTP, are those of the model itself; what does not line up is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny_llms
from serving import Serving
from tiny_served import TEXTS, Teacher, byte_level, raw, sentencepiece

from limbeck.core.check import LimbeckError
from limbeck.data.model_writer import Decoding
from limbeck.data.named import Names
from limbeck.sources.served import Server, Service
from limbeck.writers import listed, ordered, spoken


def ask(serving: Serving, folder) -> Server:
    return Server(serving.url, Service(attempts=2), folder / "responses.sqlite")


@pytest.mark.parametrize("way", ["ids", "stored", "plain", "escaped", "decoded"])
@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_log_probabilities_of_a_text_are_the_models_own(tmp_path, make, way):
    tokenizer = make()
    teacher = Teacher(tokenizer, way)
    names = Names(tokenizer)
    texts = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in TEXTS]
    asked = [(ids, [n for n in range(len(ids) - 1) if n % 2 == 0]) for ids in texts]
    with Serving(teacher) as serving:
        rows = list(listed(ask(serving, tmp_path), asked, names, top=4))
    assert len(rows) == 3
    for (ids, positions), row in zip(asked, rows, strict=True):
        said = teacher.log_probs(ids)[positions].numpy()
        assert row.ids.tolist() == ids
        assert row.positions.tolist() == positions
        real = np.isfinite(row.log_p)
        np.testing.assert_allclose(row.log_p[real], np.take_along_axis(said, row.top, 1)[real], atol=1e-5)
        assert (np.diff(np.where(real, row.log_p, -1e9), axis=1) <= 0).all()
        for own, top in zip(np.asarray(ids)[np.asarray(positions) + 1], row.top, strict=True):
            assert own in top, "the text's own token is always there"
        assert all(len(set(top[ok])) == ok.sum() for top, ok in zip(row.top, real, strict=True)), "no token twice"
    if way in ("ids", "stored"):
        assert names.unknown == 0
        assert np.isfinite(rows[0].log_p).sum(1).min() >= 4
    assert names.unknown < names.heard / 2
    assert way == "escaped" or way in names.ways


@pytest.mark.parametrize("way", ["bytes", "stored", "escaped"])
@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_text_that_is_written_brings_its_log_probabilities(tmp_path, make, way):
    tokenizer = make()
    teacher = Teacher(tokenizer, way)
    names = Names(tokenizer)
    how = Decoding("greedy", new_tokens=5)
    words = ["good film", "five plays"]
    with Serving(teacher) as serving:
        found = list(spoken(ask(serving, tmp_path), words, names, how, top=3))
    for prompt, [(text, done, row)] in zip(words, found, strict=True):
        head = tokenizer(prompt)["input_ids"]
        said = teacher.log_probs([*head, *row.ids[1:].tolist()])[len(head) - 1 : -1].numpy()
        assert not done
        assert text == b"".join(raw(tokenizer, int(token)) for token in row.ids[1:]).decode(errors="replace")
        real = np.isfinite(row.log_p)
        np.testing.assert_allclose(row.log_p[real], np.take_along_axis(said, row.top, 1)[real], atol=1e-5)
        assert row.log_p[:, 0].tolist() == pytest.approx(said.max(1).tolist(), abs=1e-5)


def test_a_name_that_may_mean_two_tokens_means_none():
    """What ``▁p`` is shows once it is in a text: before, the server may as well print tokens as they spell."""
    tokenizer = sentencepiece()
    names, stored = Names(tokenizer), tokenizer.get_vocab()
    ids = [stored["▁"], stored["d"], stored["l"]]
    heard = [None, *((((name, None)), -1.0, [(("▁p", None), -1.5)]) for name in "dl")]
    assert names.listed(ids, heard, [0]).top.tolist() == [[stored["d"]]]
    assert (names.heard, names.unknown) == (1, 1)
    names.listed([*ids, stored["▁p"]], [*heard, (("▁p", None), -1.0, [])], [0])
    assert names.ways == ["stored"]
    assert names.listed(ids, heard, [0]).top.tolist() == [[stored["d"], stored["▁p"]]]


def test_a_server_with_another_tokenizer_is_refused(tmp_path):
    theirs, ours = byte_level(), sentencepiece()
    ids = ours(TEXTS[0])["input_ids"]
    with (
        Serving(Teacher(theirs, "plain")) as serving,
        pytest.raises(LimbeckError, match=r"the server's token 2 is '.*', the student's '.*'; probabilities teach"),
    ):
        list(listed(ask(serving, tmp_path), [(ids, [0])], Names(ours), top=3))
    with pytest.raises(
        LimbeckError, match=r"the server wrote the tokens 'quux' \.\.\., which are not tokens of the stu"
    ):
        Names(ours).spoken([(("quux", None), -0.1, [])], "quux")


def test_half_a_character_that_prints_like_any_other_is_no_token():
    names = Names(byte_level())
    with pytest.raises(LimbeckError, match="the server wrote the tokens 'a', '�'"):
        names.spoken([(("a", None), -0.1, []), (("�", None), -0.1, [])], "a�")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("nan", "expected the log-probability of a token, a number of at most 0, but got nan"),
        ("positive", "but got 2.0"),
        ("text", "but got 'likely'"),
        ("short", "expected 6 tokens, but got lists of 5, 6, 6"),
        ("unsaid", "expected log-probabilities; take a server that knows echo and logprobs"),
    ],
)
def test_a_server_that_lies_about_probabilities(tmp_path, fault, message):
    tokenizer = tiny_llms.tokenizer()
    ids = tokenizer("good film one two red blue")["input_ids"]
    with Serving(Teacher(tokenizer, "plain")) as serving:
        serving.fail(fault, fault)
        with pytest.raises(LimbeckError, match=f"{message}.*gave up after 2 attempts"):
            list(listed(ask(serving, tmp_path), [(ids, [0])], Names(tokenizer), top=3))
        serving.fail(fault)
        assert len(list(listed(ask(serving, tmp_path), [(ids, [0, 4])], Names(tokenizer), top=3))) == 1


def test_a_chat_that_lies_about_probabilities(tmp_path):
    tokenizer = tiny_llms.tokenizer()
    with Serving(Teacher(tokenizer, "plain")) as serving:
        serving.fail("nan", "nan")
        with pytest.raises(LimbeckError, match="a number of at most 0, but got nan"):
            list(spoken(ask(serving, tmp_path), ["good"], Names(tokenizer), Decoding("greedy", new_tokens=2), top=2))


def test_the_first_token_is_predicted_by_nobody():
    names = Names(tiny_llms.tokenizer())
    heard = [None, None]
    with pytest.raises(LimbeckError, match="says nothing about the first token"):
        names.listed([4, 5], heard, [0])


def test_probabilities_that_sum_to_more_than_one_are_no_probabilities():
    from limbeck.sources.replies import Fault, read_echo

    said = {"tokens": ["a", "b"], "token_logprobs": [None, -0.1], "top_logprobs": [None, {"a": -0.1, "b": -0.1}]}
    with pytest.raises(Fault, match=rf"sum to at most 1, but got 2 of sum {2 * math.exp(-0.1):.4g}"):
        read_echo({"choices": [{"index": 0, "logprobs": said}]}, 2)


def test_ordered():
    assert list(ordered([(1, "b"), (0, "a"), (3, "d"), (2, "c")])) == list(enumerate("abcd"))
