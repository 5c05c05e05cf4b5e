import pytest

from limbeck.atlas.corpora import pieces
from limbeck.atlas.entities import TAGS, entities, entity_documents, words
from limbeck.atlas.facts import Fact, about, aside
from limbeck.atlas.speech import sentence


def test_tags_of_a_sentence():
    from limbeck.atlas.entities import tagged

    node = about(aside(Fact("territory", ("ZA",)), Fact("date", (2021, 3, 12), "long")), Fact("percent", (0.354,)))
    found = tagged(sentence(node, "ro"))
    assert found["words"] == ["Africa", "de", "Sud", "(", "12", "martie", "2021", ")", ":", "35,4", "%", "."]
    assert found["tags"] == [
        *("B-territory", "I-territory", "I-territory", "O", "B-date", "I-date", "I-date", "O", "O"),
        *("B-percent", "I-percent", "O"),
    ]


@pytest.mark.parametrize("locale", ["ro", "zh", "hi", "ar", "th", "ja", "fa", "ko"])
def test_rows_are_well_formed_and_lose_no_letter(locale):
    for row, piece in zip(entities(locale, 80, 2), pieces(locale, 80, 2), strict=True):
        assert len(row["words"]) == len(row["tags"])
        assert set(row["tags"]) <= set(TAGS)
        assert "".join(row["words"]) == piece.text.replace(" ", "")
        assert sum(tag.startswith("B-") for tag in row["tags"]) == len(piece.spans)
        for before, tag in zip(["O", *row["tags"]], row["tags"], strict=False):
            assert not tag.startswith("I-") or before[2:] == tag[2:]


def test_every_kind_occurs():
    assert {tag for row in entities("en", 600) for tag in row["tags"]} == set(TAGS)


def test_documents_are_longer_than_sentences():
    assert min(len(row["words"]) for row in entity_documents("ro", 10)) > 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.234,50 lei.", ["1.234,50", "lei", "."]),
        ("d’Ivoire, a-b", ["d’Ivoire", ",", "a-b"]),
        ("किलोग्राम।", ["किलोग्राम", "।"]),
        ("2021年3月", ["2021", "年", "3", "月"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("10:30", ["10", ":", "30"]),
        ("", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected
