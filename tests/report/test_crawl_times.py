"""Months of crawls: which columns hold dates, and what is counted."""

import pyarrow as pa
import pytest

from manifpt.report.crawl_times import Months, date_column, month_of


@pytest.mark.parametrize(
    ("text", "month"),
    [("1999-12", "1999-12"), ("2024-02-29", "2024-02"), ("2024-02-29T01:02:03+09:00", "2024-02"),
     ("2024-13-01", None), ("20240229", None), ("1024-768", None), ("", None), (None, None),
     ("2024-02-29<b>", None)],
)  # fmt: skip
def test_months_of_iso_dates_alone(text, month):
    assert month_of(text) == month


def test_the_first_column_of_dates_is_taken_and_text_is_none():
    columns = {"id": ["2024-01-01"], "caption": ["2024, a year"], "day": ["2024-05-01"]}
    assert date_column(pa.table(columns | {"later": ["2025-05-01"]})) == "day"
    assert date_column(pa.table({"day": pa.array([None], pa.string())})) is None
    assert date_column(pa.table({"id": ["2024-01-01"]})) is None


def test_rows_without_a_date_are_counted_apart():
    months = Months()
    first = {"decision": ["real"], "day": pa.array([None], pa.string())}
    months.add(pa.table(first))
    days = ["2024-05-01", "2023-01-01", None, "2024-05-30"]
    months.add(pa.table({"decision": ["real", "real", "unsure", "unknown"], "day": days}))
    months.add(pa.table({"decision": ["real"], "day": ["soon"]}))
    assert months.ordered == {"2023-01": {"real": 1}, "2024-05": {"real": 1, "unknown": 1}}
    assert list(months.ordered) == ["2023-01", "2024-05"]
    assert months.undated == 3
