import re

import pytest

from limbeck.atlas import names
from limbeck.atlas.corpora import documents, parallel, pieces, sentences
from limbeck.atlas.speech import capital, marks
from limbeck.core.check import LimbeckError

SOME = ["ro", "en", "de", "hi", "zh", "ar", "ja", "th", "fa", "hy", "am", "sw", "ab", "ckb", "zh_Hant"]


def test_the_same_seed_gives_the_same_text_and_a_longer_list_begins_with_the_shorter():
    assert sentences("ro", 50, 3) == sentences("ro", 80, 3)[:50]
    assert sentences("ro", 50, 3) != sentences("ro", 50, 4)
    assert documents("de", 5, 1) == documents("de", 9, 1)[:5]


def test_thousands_of_sentences_are_distinct():
    assert len(set(sentences("ro", 3000))) == 3000


@pytest.mark.parametrize("locale", SOME)
def test_every_fact_stands_where_the_piece_says_and_nothing_is_left_unfilled(locale):
    for piece in pieces(locale, 60):
        assert not re.search("[{}\ue000-\uf8ff\u200e\u200f\u00a0]|  ", piece.text)
        assert piece.text.endswith((marks(locale).stop, marks(locale).question))
        assert all(0 <= span.start < span.end <= len(piece.text) for span in piece.spans)
        assert all(a.end <= b.start for a, b in zip(piece.spans, piece.spans[1:], strict=False))


@pytest.mark.parametrize("locale", names.locales()[::6])
def test_every_locale_can_speak(locale):
    assert len(documents(locale, 2)) == 2
    assert len(sentences(locale, 20)) == 20


def test_facts_carry_the_names_of_the_locale():
    found = {
        piece.text[s.start : s.end] for piece in pieces("ro", 400) for s in piece.spans if s.fact.kind == "territory"
    }
    known = set(names.names("territory", "ro").values())
    assert len(found) > 100
    assert found <= known | {capital(name, "ro") for name in known}


def test_documents_are_about_one_territory_and_as_long_as_asked():
    text = documents("en", 1, 5, length=(40, 40))[0]
    assert text.count(". ") + text.count("? ") >= 39
    with pytest.raises(LimbeckError, match="length"):
        documents("en", 1, length=(3, 2))


def test_parallel_text_says_the_same_facts():
    pairs = parallel("ro", "de", 200, 1)
    assert pairs == parallel("ro", "de", 200, 1)
    here, there = names.names("territory", "ro"), names.names("territory", "de")
    alike = 0
    for ro, de in pairs:
        for key, name in here.items():
            if key in there and re.search(rf"(^|[^\w-]){re.escape(name)}: ", ro) and name != there[key]:
                alike += there[key] in de
                assert there[key] in de, (ro, de)
    assert alike > 30


def test_an_unknown_locale_is_named():
    with pytest.raises(LimbeckError, match="'xq'"):
        sentences("xq", 1)


def test_more_sentences_than_there_are_is_an_error(monkeypatch):
    from limbeck.atlas import corpora

    monkeypatch.setattr(corpora, "SHAPES", [lambda spoken, rng, topic: corpora.Fact("territory", ("RO",))])
    with pytest.raises(LimbeckError, match="only 1 different"):
        sentences("en", 2)
