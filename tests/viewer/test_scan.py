"""Pages of rows are those of a filter and a sort of the whole table, whatever the files."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from manifpt.errors import ManifptError
from manifpt.viewer.scan import AddressError, Position, Query, RowFiles


def written(folder, table, sizes, group_rows=7):
    """Write a table as files of these sizes; return them as a table's files."""
    files, start = [], 0
    for number, size in enumerate(sizes):
        path = f"attributions/{number:06d}.parquet"
        (folder / "attributions").mkdir(exist_ok=True, parents=True)
        pq.write_table(table.slice(start, size), folder / path, row_group_size=group_rows)
        files.append({"path": path, "rows": size})
        start += size
    assert start == table.num_rows
    return RowFiles(str(folder), files)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, 120).astype(float)  # with ties
    return pa.table(
        {
            "id": [f"id-{n:03d}" for n in range(120)],
            "score": pa.array(scores, mask=rng.uniform(size=120) < 0.2),
            "name": rng.choice(["a", "b", "c"], 120),
        }
    )


@pytest.fixture(scope="module")
def files(table, tmp_path_factory):
    return written(tmp_path_factory.mktemp("rows"), table, [50, 0, 3, 67])


def pages(files, query, most):
    found, after = [], None
    while True:
        page = files.page(query, after, most)
        assert len(page.positions) <= most
        found += files.rows(page.positions)
        if page.after is None:
            return found
        after = Position.parse(str(page.after))


def expected(table, where, by, descending):
    rows = [row for row in table.to_pylist() if where is None or row["name"] in where]
    if by is None:
        return rows
    sign = -1 if descending else 1
    return sorted(rows, key=lambda r: np.inf if r[by] is None else sign * r[by])  # stable


@pytest.mark.parametrize("most", [1, 8, 500])
@pytest.mark.parametrize(("by", "descending"), [(None, False), ("score", False), ("score", True)])
@pytest.mark.parametrize("names", [None, ["b"], ["a", "c"], ["none"]])
def test_pages_together_are_the_sorted_matches(table, files, names, by, descending, most):
    where = None if names is None else pc.field("name").isin(names)
    query = Query(where, () if names is None else ("name",), by, descending)
    found = pages(files, query, most)
    wanted = expected(table, names, by, descending)
    assert [row["id"] for row in found] == [row["id"] for row in wanted]
    assert files.matches(query) == len(wanted)
    total = files.page(query, None, most).total
    assert total in ({len(wanted)} if by or len(wanted) <= most else {None})


def test_files_whose_statistics_allow_no_match_are_not_read(table, tmp_path):
    files = written(tmp_path, table, [60, 60])
    path = tmp_path / files.paths[0]
    data = bytearray(path.read_bytes())
    data[4 : 4 + 500] = bytes(500)  # pages of the first file; its footer stays
    path.write_bytes(data)
    query = Query(pc.field("id") == "id-100", ("id",))
    assert files.rows(files.page(query).positions)[0]["id"] == "id-100"
    with pytest.raises(ManifptError, match=r"000000.parquet: .*; check the path"):
        files.page(Query(by="score"))


def test_columns_of_a_row_are_those_that_there_are(files):
    (row,) = files.rows([Position(3, 5)], ["name", "other"])
    assert row == {"name": row["name"], "at": Position(3, 5)}
    for place in (Position(1, 0), Position(0, 50), Position(9, 0)):
        with pytest.raises(AddressError, match="there is no such row"):
            files.rows([place])


@pytest.mark.parametrize("text", ["", "1", "x.2", "1.2.3", "1..2", "-1.2", "1.-2", "0.1~1.2"])
def test_a_position_that_is_none_is_refused(text):
    with pytest.raises(AddressError, match="names no row"):
        Position.parse(text)


def test_an_empty_table_has_an_empty_page(tmp_path):
    files = RowFiles(str(tmp_path), [])
    assert files.page(Query()).positions == []
    assert files.rows([]) == []
    assert files.matches(Query(by="x")) == 0
