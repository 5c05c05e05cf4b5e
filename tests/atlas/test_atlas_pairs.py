from collections import Counter
from random import Random

import pytest

from limbeck.atlas.facts import world
from limbeck.atlas.pairs import KINDS, change, draw, parallel_retrieval, retrieval, similarity
from limbeck.core.check import LimbeckError


def test_changed_records_share_exactly_the_facts_kept():
    spoken = world("ro")
    for seed in range(60):
        rng = Random(seed)
        record = draw(spoken, rng)
        kinds = rng.sample(KINDS, seed % 6)
        changed = change(spoken, rng, record, kinds)
        assert sum(a.same(b) for a, b in zip(record, changed, strict=True)) == 5 - len(kinds)
        assert [fact.kind for fact in changed] == [fact.kind for fact in record]


def test_every_grade_of_similarity_is_as_likely():
    found = Counter(row["score"] for row in similarity("ro", 600))
    assert sorted(found) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert min(found.values()) > 60


def test_similar_sentences_share_more_words():
    def overlap(row):
        one, two = (set(row[key].lower().strip(".").split()) for key in ("sentence1", "sentence2"))
        return len(one & two) / len(one | two)

    rows = similarity("ro", 300)
    means = [sum(overlap(r) for r in rows if r["score"] == s) / sum(r["score"] == s for r in rows) for s in range(6)]
    assert means == sorted(means)


def test_similarity_across_locales_has_the_second_sentence_in_the_other():
    rows = similarity("ro", 40, other="zh")
    assert all(row["sentence2"].endswith("。") and not row["sentence1"].endswith("。") for row in rows)


def test_the_positive_is_the_record_of_the_query():
    from limbeck.atlas.names import names

    places = set(names("territory", "ro").values())
    for row in retrieval("ro", 60, negatives=4):
        assert len(row["negatives"]) == 4
        place = next(name for name in sorted(places, key=len, reverse=True) if row["query"].startswith(name))
        assert place in row["positive"]
        assert place in row["negatives"][0]
        assert row["positive"] not in row["negatives"]


def test_parallel_retrieval_is_deterministic_and_speaks_both_locales():
    rows = parallel_retrieval("hi", "ro", 20, 1, negatives=3)
    assert rows == parallel_retrieval("hi", "ro", 20, 1, negatives=3)
    assert all(row["query"].endswith("।") and row["positive"].endswith(".") for row in rows)


def test_no_negatives_is_an_error():
    with pytest.raises(LimbeckError, match="negatives=0"):
        retrieval("ro", 1, negatives=0)
