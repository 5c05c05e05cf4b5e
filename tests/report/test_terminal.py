from __future__ import annotations

import io

from rich.console import Console

from limbeck.report.sections import Spread, Table
from limbeck.report.terminal import print_table


def test_a_table_is_printed_with_intervals_and_plain_brackets() -> None:
    out = io.StringIO()
    table = Table(
        "Scores", ("method", "score"), [("MEND [8]", Spread(0.94, 0.01)), ("none", None)], note="Mean [95 %]."
    )
    print_table(table, Console(file=out, width=80, markup=False, highlight=False))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines[0] == "Scores"
    assert lines[2].split("  ")[0] == "MEND [8]"
    assert lines[2].endswith("0.940 ± 0.010")
    assert lines[-1] == "Mean [95 %]."
