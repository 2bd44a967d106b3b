"""The declared types of rows have the columns of the tables."""

import pytest

from manifpt.attribution.crawl import crawl_format as declared
from manifpt.attribution.crawl.duplicates import DUPLICATES
from manifpt.attribution.crawl.grouping import GROUP_ROWS
from manifpt.attribution.crawl.leaks import LEAKS
from manifpt.attribution.crawl.stage import AGREEMENT, ATTRIBUTIONS
from manifpt.attribution.crawl.verdicts import SHOWN
from manifpt.attribution.model.tiled import TILED
from manifpt.engine.chunk_work import QUARANTINE


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (declared.AttributionRow, [*ATTRIBUTIONS, *LEAKS, *AGREEMENT, *TILED]),
        (declared.QuarantineRow, QUARANTINE),
        (declared.CopyRow, DUPLICATES),
        (declared.GroupRow, GROUP_ROWS),
        (declared.VerdictRow, SHOWN),
    ],
)
def test_rows_have_the_columns_of_their_tables(row, columns):
    assert list(row.__annotations__) == list(columns)
    assert row.__optional_keys__ == {name for name in columns if name in {*AGREEMENT, *TILED}}
