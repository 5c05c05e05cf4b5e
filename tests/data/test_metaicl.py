"""MetaICL's layout against what the released code gives (golden)."""

import json
from pathlib import Path

import pytest

from limbeck.core.check import LimbeckError
from limbeck.data.metaicl import metaicl_item
from limbeck.data.templates import Example, layout

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/metaicl-evaluation/layout.json").read_text())


def example(row):
    return Example(row["task"], row["input"], row["output"], tuple(row["options"]))


DEMOS = [example(row) for row in GOLDEN["in_demonstrations"]]


def describe(case):
    direction = f"{case['hp_method']}-{'newlines' if case['hp_newlines'] else 'spaces'}"
    return f"{direction}-{case['hp_max_length']}{'-zero' if case.get('hp_zero_shot') else ''}"


@pytest.mark.parametrize("case", GOLDEN["items"], ids=describe)
def test_golden_layout(characters, case):
    settings = {"limit": case["hp_max_per_example"], "total": case["hp_max_length"]}
    settings |= {"channel": case["hp_method"] == "channel", "newlines": case["hp_newlines"]}
    demos = [] if case.get("hp_zero_shot") else DEMOS
    items = [metaicl_item(characters, demos, example(row), **settings) for row in GOLDEN["in_tests"]]
    rows = [pair for item in items for pair in item]
    for (context, scored), ids, length, span, text in zip(
        rows,
        case["out_input_ids"],
        case["out_attention_length"],
        case["out_scored_range"],
        case["ref_text"],
        strict=True,
    ):
        assert context + scored + [0] * (settings["total"] - length) == ids
        assert len(context + scored) == length
        assert [len(context), len(scored)] == span
        assert "".join(map(chr, context + scored)) == text


def test_golden_option_longer_than_the_limit_empties_the_input(characters):
    case = GOLDEN["option_longer_than_limit"]
    item = metaicl_item(characters, [], example(case["in_test"]), limit=case["hp_max_per_example"])
    rows = [(context + scored + [0] * 64)[:64] for context, scored in item]
    assert rows == case["fix_input_ids"]
    assert rows != case["bad_input_ids"]


def test_an_example_without_input_or_label_has_fewer_separators(characters):
    demos = [Example("t", "a", "b"), Example("t", "", "c"), Example("t", "d", "")]
    query = Example("t", "x", "y", ("y", "z"))
    text = "".join(map(chr, metaicl_item(characters, demos, query)[0][0]))
    assert text == "a\nb\n\n\nc\n\n\nd\n\n\nx"


@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize(("name", "newlines"), [("metaicl", True), ("space", False)])
def test_a_layout_gives_the_same_where_nothing_is_cut(characters, name, newlines, channel):
    form, query = layout(name, channel), example(GOLDEN["in_tests"][0])
    demos = form.demos(characters, DEMOS, budget=1000)
    mine = [(demos + prompt, scored) for prompt, scored in form.options(characters, query.input, query.options)]
    assert mine == metaicl_item(characters, DEMOS, query, channel=channel, newlines=newlines)


def test_what_cannot_be_scored_is_refused(characters):
    query = Example("t", "", "y", ("y", "z"))
    with pytest.raises(LimbeckError, match="a channel query has no input"):
        metaicl_item(characters, DEMOS, query, channel=True)
    with pytest.raises(LimbeckError, match="4 tokens are to be scored, but a sequence holds 4"):
        metaicl_item(characters, DEMOS, Example("t", "x", "pos", ("pos", "neg")), total=4)
