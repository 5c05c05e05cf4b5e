import pytest

from limbeck.atlas.facts import Clause, Fact, about, aside, joined
from limbeck.atlas.speech import Piece, capital, leaf, paragraph, say, sentence, weave

PLACES = [Fact("territory", (code,)) for code in ("RO", "FR", "DE")]


@pytest.mark.parametrize(
    ("fact", "locale", "text"),
    [
        (Fact("measure", (3, "mass-kilogram"), "long"), "ro", "3 kilograme"),
        (Fact("measure", (23, "mass-kilogram"), "long"), "ro", "23 de kilograme"),
        (Fact("measure", (1, "mass-kilogram"), "long"), "ro", "1 kilogram"),
        (Fact("measure", (3, "mass-kilogram"), "long"), "hi", "3 किलोग्राम"),
        (Fact("amount", (1234, "RON"), "name"), "de", "1.234 Rumänische Leu"),
        (Fact("amount", (1234.5, "EUR"), "standard"), "fr", "1 234,50 €"),
        (Fact("date", (2021, 3, 12), "long"), "zh", "2021年3月12日"),
        (Fact("date", (2021, 3, 12), "long"), "fa", "۱۲ مارس ۲۰۲۱"),
        (Fact("date", (2021, 3, 12, 6), "interval"), "en", "Mar 12 – 18, 2021"),
        (Fact("date", ("day", -3), "relative"), "ro", "acum 3 zile"),
        (Fact("date", ("month", 2), "relative"), "ar", "خلال شهرين"),
        (Fact("date", (0,), "weekday"), "de", "Montag"),
        (Fact("time", (15, 30)), "en", "3:30 PM"),
        (Fact("percent", (0.354,)), "de", "35,4 %"),
        (Fact("number", (3_400_000,), "long"), "ro", "3,4 milioane"),
        (Fact("number", (3_400_000,), "full"), "hi", "34,00,000"),
        (Fact("zone", ("Europe/Bucharest",)), "ro", "Ora standard a Europei de Est"),
        (Fact("script", ("Cyrl",)), "en", "Cyrillic"),
    ],
)
def test_a_fact_in_the_words_of_the_locale(fact, locale, text):
    assert leaf(fact, locale) == text


@pytest.mark.parametrize(
    ("form", "locale", "text"),
    [
        ("and", "ro", "România, Franța și Germania"),
        ("or", "de", "Rumänien, Frankreich oder Deutschland"),
        ("unit", "en", "Romania, France, Germany"),
        ("unit", "ro", "România, Franța și Germania"),
        ("and", "zh", "罗马尼亚、法国和德国"),
    ],
)
def test_lists(form, locale, text):
    assert say(joined(list(PLACES), form), locale).text == text


def test_one_part_stands_alone():
    assert joined([PLACES[0]]) is PLACES[0]


def test_a_sentence_keeps_the_place_of_its_facts():
    node = about(aside(Fact("language", ("ro",)), PLACES[0]), joined(PLACES[1:]))
    piece = sentence(node, "ro")
    assert piece.text == "Română (România): Franța și Germania."
    assert [piece.text[s.start : s.end] for s in piece.spans] == ["Română", "România", "Franța", "Germania"]


def test_punctuation_of_the_locale():
    node = about(PLACES[0], PLACES[1])
    assert sentence(node, "hi").text.endswith("।")
    assert sentence(node, "zh").text == "罗马尼亚：法国。"
    assert sentence(node, "el", question=True).text.endswith(";")
    assert sentence(node, "fr").text == "Roumanie : France."


def test_no_second_stop_after_an_abbreviation():
    assert sentence(Fact("date", (2021, 3, 12), "full"), "bg").text.endswith("г.")


def test_paragraphs_shift_spans_and_part_sentences():
    parts = [sentence(place, "de") for place in PLACES]
    whole = paragraph(parts, "de")
    assert whole.text == "Rumänien. Frankreich. Deutschland."
    assert [whole.text[s.start : s.end] for s in whole.spans] == ["Rumänien", "Frankreich", "Deutschland"]
    assert paragraph([sentence(place, "ja") for place in PLACES], "ja").text == "ルーマニア。フランス。ドイツ。"


@pytest.mark.parametrize(
    ("text", "locale", "expected"),
    [("iran", "tr", "İran"), ("iran", "ro", "Iran"), ("ქარ", "ka", "ქარ"), ("", "ro", "")],
)
def test_capitals(text, locale, expected):
    assert capital(text, locale) == expected


def test_weave_keeps_order():
    piece = weave("\ue001-\ue000", [Piece("a"), Piece("b")])
    assert piece.text == "b-a"


def test_the_same_fact_in_another_style():
    one = Fact("date", (2021, 3, 12), "long")
    assert one.same(one._replace(style="short"))
    assert not one.same(Fact("date", (2021, 3, 13), "long"))
    assert Clause("and", (one, one)) == Clause("and", (one, one))
