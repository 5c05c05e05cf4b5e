"""Layouts: where separators go, and what is cut."""

import pytest

from limbeck.core.check import LimbeckError
from limbeck.data.templates import LAYOUTS, Example, Layout, cached, layout

GOOD, BAD = Example("t", "good film", "pos", ("pos", "neg")), Example("t", "bad film", "neg", ("pos", "neg"))


def text(ids):
    return "".join(map(chr, ids))


@pytest.mark.parametrize(
    ("name", "demos", "query"),
    [
        ("mend", "good film posbad film neg", "fine pos"),
        ("metaicl", "good film\npos\n\n\nbad film\nneg\n\n\n", "fine\npos"),
        ("space", "good film pos bad film neg ", "fine pos"),
    ],
)
def test_the_three_layouts(characters, name, demos, query):
    form = LAYOUTS[name]
    assert text(form.demos(characters, [GOOD, BAD], 100)) == demos
    ids, prompt = form.query(characters, "fine", "pos")
    assert text(ids) == query
    assert text(ids[:prompt]) == "fine"
    assert text(form.prompt(characters, "fine")) == "fine"


def test_a_channel_layout_swaps_the_sides(characters):
    form = layout("metaicl", channel=True)
    assert form == LAYOUTS["metaicl"].reversed()
    assert text(form.demos(characters, [GOOD], 100)) == "pos\ngood film\n\n\n"
    pairs = form.options(characters, "fine", ("pos", "neg"))
    assert [(text(p), text(s)) for p, s in pairs] == [("pos", "\nfine"), ("neg", "\nfine")]
    with pytest.raises(LimbeckError, match="channel layout, which scores inputs and cannot write answers"):
        form.prompt(characters, "fine")


def test_the_input_is_cut_on_the_right_and_the_answer_kept(characters):
    x, y = LAYOUTS["mend"].example(characters, "abcdefghij", "pos", limit=12)
    assert (text(x), text(y)) == ("abcdef", " pos")  # 6 + 4 + 2 = 12
    y, x = LAYOUTS["mend"].reversed().example(characters, "abcdefghij", "pos", limit=12)
    assert (text(y), text(x)) == ("pos", " abcdef")


def test_an_answer_beyond_the_limit_shares_the_room(characters):
    x, y = LAYOUTS["mend"].example(characters, "abcdefghij", "0123456789", limit=12)
    assert (text(x), text(y)) == ("abcde", " 0123")
    x, y = LAYOUTS["mend"].example(characters, "a", "0123456789", limit=12)
    assert (text(x), text(y)) == ("a", " 01234567")
    with pytest.raises(LimbeckError, match="a limit of 3 tokens per example leaves no room"):
        LAYOUTS["mend"].example(characters, "a", "b", limit=3)


def test_the_first_demonstration_that_does_not_fit_is_cut_and_the_list_stops(characters):
    form = LAYOUTS["mend"]
    assert text(form.demos(characters, [GOOD, BAD, GOOD], 20)) == "good film posbad neg"[:20]
    assert text(form.demos(characters, [GOOD, BAD, GOOD], 17)) == "good film pos"  # " neg" would fit without its input
    assert text(form.demos(characters, [GOOD, BAD], 18)) == "good film posb neg"
    assert text(form.reversed().demos(characters, [GOOD, BAD], 18)) == "pos good filmneg b"
    for budget in range(6, 30):
        assert len(form.demos(characters, [GOOD, BAD], budget)) <= budget


def test_demonstrations_there_must_be(characters):
    with pytest.raises(LimbeckError, match="the list of demonstrations is empty"):
        LAYOUTS["mend"].demos(characters, [], 100)
    with pytest.raises(LimbeckError, match="not even the first demonstration fits the budget of 3 tokens"):
        LAYOUTS["mend"].demos(characters, [GOOD], 3)


def test_options_share_one_prompt_cut_for_the_longest(characters):
    pairs = LAYOUTS["mend"].options(characters, "abcdefghij", ("yes", "never"), limit=14)
    assert [(text(p), text(s)) for p, s in pairs] == [("abcdef", " yes"), ("abcdef", " never")]
    with pytest.raises(LimbeckError, match="an option has 13 tokens, more than the limit of 14"):
        LAYOUTS["mend"].options(characters, "abc", ("y", "n" * 12), limit=14)


def test_damaged_examples_lose_their_separator_with_their_label(characters):
    assert text(LAYOUTS["space"].demo(characters, Example("t", "film", ""))) == "film "
    assert text(LAYOUTS["space"].demo(characters, Example("t", "", "pos"))) == " pos "
    assert text(LAYOUTS["space"].reversed().demo(characters, Example("t", "", "pos"))) == "pos "


def test_a_cached_tokenizer_encodes_a_text_once_and_its_ids_are_safe(characters):
    fast = cached(characters)
    form = LAYOUTS["metaicl"]
    first = form.demos(fast, [GOOD, GOOD, BAD], 100)
    first.append(-1)
    before = characters.calls
    assert form.demos(fast, [GOOD, GOOD, BAD], 100) == first[:-1]
    assert characters.calls == before == 5  # two inputs, two answers, one separator


def test_layouts_by_name():
    own = Layout("own", answer=" => ")
    assert layout(own) is own
    assert layout("mend") is LAYOUTS["mend"]
    with pytest.raises(LimbeckError, match="layout: expected one of mend, metaicl, space, but got 'metaicI'"):
        layout("metaicI")
