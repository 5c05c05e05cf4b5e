from __future__ import annotations

import pytest

from limbeck.evaluation.table import Table as Measured
from limbeck.report.results import results_table
from limbeck.report.sections import Spread


def test_cells_become_means_with_intervals() -> None:
    measured = Measured("Scores", corner="method").add("MEND", "hr", [0.9, 1.0])
    table = results_table(measured.add("MEND", "lr", 0.5).add("none", "hr", 0.1))
    assert list(table.columns) == ["method", "hr", "lr"]
    name, spread, single = table.rows[0]
    assert (name, single) == ("MEND", 0.5)
    assert isinstance(spread, Spread)
    assert spread.mean == pytest.approx(0.95)
    assert spread.half == pytest.approx(12.706 * 0.05, rel=1e-3)  # t for one degree of freedom times s / sqrt(2)
    assert table.rows[1] == ["none", 0.1, None]
