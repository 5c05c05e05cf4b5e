"""Result tables: the interval, the forms, and the gaps."""

import io
import json

import pytest
from rich.console import Console
from scipy import stats

from limbeck.core.check import LimbeckError
from limbeck.evaluation.table import Table, summary


@pytest.fixture
def table():
    made = Table("Scores", corner="method")
    return made.add("icl", "hard", [0.5, 0.6, 0.7]).add("icl", "FLOPs", 123456789).add("mend", "hard", 0.25)


def test_the_interval_is_student_s():
    values = [0.5, 0.6, 0.8, 0.4]
    low, high = stats.t.interval(0.95, 3, loc=0.575, scale=stats.sem(values))
    mean, half, number = summary(values)
    assert mean == pytest.approx(0.575)
    assert (mean - half, mean + half, number) == pytest.approx((low, high, 4))
    assert summary([0.5]) == (0.5, None, 1)
    assert summary([0.5, 0.5]).half == 0.0
    with pytest.raises(LimbeckError, match="a summary needs at least one value"):
        summary([])


def test_markdown_keeps_the_order_and_shows_gaps(table):
    assert table.markdown() == (
        "Scores\n\n"
        "| method | hard | FLOPs |\n"
        "| --- | ---: | ---: |\n"
        "| icl | 0.600 ± 0.248 | 123,456,789 |\n"
        "| mend | 0.250 | - |\n"
    )


def test_values_are_added_behind_those_there(table):
    table.add("mend", "hard", [0.35])
    assert table.cells["mend"]["hard"] == [0.25, 0.35]
    assert table.text("mend", "hard") == "0.300 ± 0.635"


def test_json_holds_every_value(table):
    data = json.loads(json.dumps(table.data()))
    assert data["title"] == "Scores"
    assert data["rows"]["icl"]["hard"] == {
        "values": [0.5, 0.6, 0.7],
        "mean": pytest.approx(0.6),
        "half": pytest.approx(0.2484, abs=1e-4),
    }
    assert data["rows"]["mend"] == {"hard": {"values": [0.25], "mean": 0.25, "half": None}}


def test_the_screen_shows_the_same(table):
    screen = io.StringIO()
    table.print(Console(file=screen, width=80))
    text = screen.getvalue()
    assert all(word in text for word in ("Scores", "method", "icl", "0.600 ± 0.248", "123,456,789", "mend", "-"))


def test_values_must_be_finite(table):
    with pytest.raises(LimbeckError, match="the table's cell mend / hard got a value that is not finite"):
        table.add("mend", "hard", float("nan"))
