"""Tables of students beside their teacher."""

from limbeck.report.students import prices

STUDENT = {"parameters": 1e6, "megabytes": 4.0, "tokens_per_second": 200.0}
TEACHER = {"parameters": 3e6, "megabytes": 12.0, "tokens_per_second": 100.0}


def test_prices_are_told_beside_the_teacher():
    table = prices({"teacher": TEACHER, "distilled": STUDENT}, "teacher")
    assert list(table.columns)[-2:] == ["times smaller", "times faster"]
    assert list(table.rows[1])[-2:] == [3.0, 2.0]


def test_without_a_teacher_in_memory_nothing_is_compared():
    table = prices({"distilled": STUDENT, "sft": STUDENT}, "teacher")
    assert [len(row) for row in (table.columns, *table.rows)] == [4, 4, 4]
