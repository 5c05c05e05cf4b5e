import pytest

from limbeck.atlas.questions import questions


@pytest.mark.parametrize("locale", ["ro", "en", "zh", "hi", "ar", "th", "ckb", "ab"])
def test_the_answer_stands_where_the_row_says(locale):
    for row in questions(locale, 80, 1):
        assert list(row) == ["context", "question", "answer", "start"]
        assert row["context"][row["start"] :].startswith(row["answer"])
        assert row["answer"].strip()
        assert row["question"].strip()


def test_the_same_seed_gives_the_same_rows():
    assert questions("ro", 5, 7) == questions("ro", 9, 7)[:5]
    assert questions("ro", 5, 7) != questions("ro", 5, 8)


def test_the_subject_of_the_question_precedes_the_answer_in_the_same_sentence():
    for row in questions("ro", 100):
        subject = row["question"].split(":")[0]
        before = row["context"][: row["start"]]
        assert f"{subject}: " in before, row
        assert ". " not in before.split(f"{subject}: ")[-1], row


def test_no_other_fact_answers_the_question():
    for row in questions("ro", 200, 2):
        subject, asked = row["question"].rstrip("?").split(": ")
        if asked == "monedă necunoscută":
            assert row["context"].count(f"{subject}:") == 1


def test_questions_in_english_are_sentences():
    rows = questions("de", 60, asked_in="en")
    assert all(row["question"].endswith("?") and len(row["question"].split()) > 4 for row in rows)
    assert any("currency of" in row["question"] for row in rows)


def test_questions_name_what_is_unknown_in_the_locale():
    assert any("monedă necunoscută" in row["question"] for row in questions("ro", 100))
