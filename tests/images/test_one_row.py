"""One bad item costs its own row: what is beside it is read, and nothing is lost uncounted."""

import gzip
import io
import json
import os
import socket
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import handmade
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from conftest import png, write_folder
from faulty_s3 import FaultyS3

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, Reading, read_unit
from manifpt.images.units import units
from manifpt.jobs import attribute

RULE = DecodeRule(16)


def read(uri, skipped=None, labelled=False, **reading):
    found = units([str(uri)], reading=Reading(**reading), skipped=skipped, labelled=labelled)
    return [row for unit in found for table in read_unit(unit, RULE) for row in table.to_pylist()]


def errors(rows):
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row["error"] for row in rows}


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """Return what puts a folder where it is to be read, and says where that is."""
    if request.param == "local":
        return str
    bucket = request.getfixturevalue("s3")

    def upload(folder):
        fs = s3fs.S3FileSystem(use_listings_cache=False)
        fs.put(str(folder), f"manifpt/one-row/{tmp_path.name}", recursive=True)
        return f"{bucket}/one-row/{tmp_path.name}"

    return upload


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "in", "real", range(2))


GOOD = {"0000.png": None, "0001.png": None}


def tar_of(members, mode="w", **options):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode, **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "x.png"
            tar.addfile(info, io.BytesIO(data or b""))
    return sink.getvalue()


FIRST, SECOND = png("real", 7), png("real", 8)


def wrong_sum(packed):
    return packed[:-8] + bytes(4) + packed[-4:]


TARS = {
    "of no bytes": ("t.tar", b"", {"t/~broken": "broken_archive"}),
    "of no bytes, compressed": ("t.tgz", gzip.compress(b""), {"t/~broken": "broken_archive"}),
    "with a wrong sum at its end": (
        "t.tar.gz",
        wrong_sum(gzip.compress(tar_of([("a.png", FIRST)]))),
        {"t/a": None, "t/~broken": "broken_archive"},
    ),
    "with garbage between gzip's members": (
        "t.tar.gz",
        gzip.compress(tar_of([("a.png", FIRST)])[:1536]) + b"garbage",
        {"t/a": None, "t/~broken": "broken_archive"},
    ),
    "with a flipped bit": (
        "t.tgz",
        (lambda data: data[:90] + bytes(20) + data[110:])(
            gzip.compress(tar_of([("a.png", FIRST)]))
        ),
        {"t/~broken": "broken_archive"},
    ),
    "with a name three times": (
        "t.tar",
        tar_of([("x.jpg", FIRST), ("x.png", SECOND), ("x.jpg", None)]),
        {"t/x.jpg": "unsafe_member", "t/x.jpg~2": None, "t/x.png": None},
    ),
    "with a name like a mark": (
        "t.tar",
        tar_of([("~broken.png", FIRST), ("b.png", SECOND)])[:2048],
        {"t/%7Ebroken": None, "t/~broken": "broken_archive"},
    ),
    "with sidecars that are no JSON": (
        "t.tar",
        tar_of([("a.png", FIRST), ("a.json", b"[" * 10**5), ("b.png", FIRST), ("b.json", b"\xff")]),
        {"t/a": None, "t/b": None},
    ),
}


@pytest.mark.parametrize("name", TARS)
def test_a_tar(folder, place, name):
    file, data, expected = TARS[name]
    (folder / file).write_bytes(data)
    assert errors(read(place(folder))) == GOOD | expected


def test_uris_of_members_name_them(tmp_path):
    names = ["a.b/c.d.png", "x.jpg", "x.png", "\udcff%41~.png", "e/f.json"]
    (tmp_path / "t.tar").write_bytes(tar_of([(name, FIRST) for name in names]))
    uris = [row["uri"].removeprefix(f"{tmp_path}/t.tar#") for row in read(tmp_path)]
    assert uris == ["a.b/c.d.png", "x.jpg", "x.png", "%FF%2541~.png", "e/f.json"]


ENTRIES = ["0000.png", "nul\0.png", "\ud800.png", "s3://", "s3://bucket", "s3:///key"]
ENTRIES += ["s3://not a bucket/key", "s3://manifpt/\udcff", "http://[/", "0001.png"]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv"])
def test_entries_that_name_nothing(folder, place, s3, ending):
    entries = [e if ending == "jsonl" else e.encode(errors="ignore").decode() for e in ENTRIES]
    lines = [json.dumps({"url": e}) if ending == "jsonl" else e for e in ["url", *entries]]
    (folder / f"t.{ending}").write_text("\n".join(lines[ending == "jsonl" :]))
    found = read(f"{place(folder)}/t.{ending}")
    assert [row["error"] is None for row in found] == [True, *[False] * 8, True]
    assert {row["error"] for row in found[1:-1]} <= {
        "unreadable",
        "download_failed",
        "missing_image",
    }


def csv_of(*lines):
    return "\n".join(["url,caption", *lines, ""])


def rows_of(count):
    return [f"000{n % 2}.png,caption {n}" for n in range(count)]


TABLES = {
    "a stray quote in front": ("csv", csv_of(*rows_of(50), '"0000.png,x', *rows_of(50)), 50),
    "a stray quote behind": ("csv", csv_of(*rows_of(50), '0000.png,"', *rows_of(50)), None),
    "a stray quote before a quoted field": (
        "csv", csv_of('"0000.png,x', *rows_of(3), '0001.png,"a, b"', *rows_of(3)), 0,
    ),
    "a stray quote before a field of two lines": (
        "csv", csv_of('"0000.png,x', '0001.png,"a', 'b"', *rows_of(3)), 0,
    ),
    "two stray quotes": ("csv", csv_of('0000.png,"', *rows_of(9), '0000.png,"', "0001.png,"), None),
    "two stray quotes in front": (
        "csv", csv_of('"0000.png,x', *rows_of(9), '"0000.png,y'), (0, 10),
    ),
    "fields of several lines": (
        "csv",
        csv_of(*rows_of(3), '0000.png,"a, b', "c.d", "", '""e"", f"', '0001.png,"g', 'h, i"'), None,
    ),
    "a quote in a field": ("csv", csv_of('0000.png,5" wide', '0001.png,"x" y', *rows_of(3)), None),
    "a first line that is no JSON": ("jsonl", '{"url": \n{"url": "0000.png"}\n', 0),
    "a first line that is no object": ("jsonl", '7\n{"url": "0000.png"}\n', 0),
    "a line of a wrong byte": ("jsonl", '{"url": "0000.png", "caption": "\udcff"}\n', None),
    "a line of deep JSON": ("jsonl", '{"url": "0000.png"}\n' + "[" * 10**5 + "\n", 1),
    "a cell of a wrong byte": ("csv", csv_of("0000.png,\udcff", *rows_of(3)), None),
    "a cell without end": ("csv", csv_of("0000.png,x", "0000.png," + "x" * 2**18, *rows_of(2)), 1),
    "a line without end": ("tsv", "url\n0000.png\n" + "x" * 2**21 + "\n0001.png", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_line_of_a_table(folder, place, name):
    ending, text, bad = TABLES[name]
    (folder / f"t.{ending}").write_bytes(text.encode("utf-8", "surrogateescape"))
    found = read(f"{place(folder)}/t.{ending}", columns=("caption",), id_column=None)
    errors(found)
    wrong = [n for n, row in enumerate(found) if row["error"] is not None]
    assert wrong == ([] if bad is None else [bad] if isinstance(bad, int) else [*bad])
    assert {row["error"] for row in found} <= {None, "missing_image"}
    if "fields of several" in name:
        assert [row["caption"] for row in found[3:]] == ['a, b\nc.d\n\n"e", f', "g\nh, i"]
    elif ending == "csv":
        assert len(found) == text.count("\n") - 1 - (
            name == "a stray quote before a field of two lines"
        )


@pytest.mark.parametrize("text", ["", "\n\n", "url,caption\n"])
def test_an_empty_table_is_counted(folder, place, text):
    (folder / "t.csv").write_text(text)
    (folder / "u.csv").write_text("url\n0000.png\n")
    skipped = Counter()
    found = read(f"{place(folder)}/*.csv", skipped)
    assert errors(found) == {"u/00000000": None}
    assert skipped == {"empty_table": 1}
    with pytest.raises(ManifptError, match=r"nothing to read \(1 x empty table\)"):
        read(f"{place(folder)}/t.csv")


def test_a_table_without_a_header_is_one_row(folder, place):
    (folder / "t.csv").write_bytes(b'url"\r\r\x00\xff\n0000.png\n')
    assert errors(read(f"{place(folder)}/t.csv")) == {"t/~broken-00000000": "broken_archive"}


NAMES = {
    "": None, "_DSC1234.JPG": None, "__x.png": None,
    ".x.png": "hidden", "_SUCCESS": "hidden", "_records/x.png": "hidden", "a/.git/x.png": "hidden",
}  # fmt: skip


def test_names_that_begin_with_a_line_are_images_unless_they_are_known(folder, place):
    for name in filter(None, NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(FIRST)
    skipped = Counter()
    assert errors(read(place(folder), skipped)) == GOOD | {"_DSC1234.JPG": None, "__x.png": None}
    assert skipped == {"hidden": 4}


def test_bytes_and_escapes_in_names(tmp_path):
    for name in (b"a\xff.png", b"a\\udcff.png", b"a%FF.png", b"a~.png"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(FIRST)
    (tmp_path / "b.tar").write_bytes(tar_of([("x.png", FIRST), ("x.jpg", FIRST)]))
    for name in ("b", "b~"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(FIRST)
    ids = r"a%25FF.png a%7E.png a%FF.png a\udcff.png b/x.png b/x.jpg b~/x.png b%7E/x.png"
    assert errors(read(tmp_path)) == dict.fromkeys(ids.split())


CARDS = {
    "of others": {"name": "business"},
    "of another kind": {"manifpt": "1", "files": {"x": 1}},
    "that leads out": {"manifpt": "1", "files": ["../0000.png"]},
    "of an absolute path": {"manifpt": "1", "files": ["/etc/passwd"]},
    "without files": {"manifpt": "1"},
    "that is no object": [],
}


@pytest.mark.parametrize("name", CARDS)
def test_a_foreign_card_is_a_file(folder, place, name):
    card = CARDS[name]
    if isinstance(card, dict) and isinstance(card.get("files"), list):
        facts = {"source": "s", "split": "test", "sha256": "0" * 64}
        card["files"] = [f if isinstance(f, dict) else {"path": f} | facts for f in card["files"]]
    (folder / "card.json").write_text(json.dumps(card))
    assert errors(read(place(folder))) == GOOD | {"card.json": "unknown_format"}


def test_a_card_of_ours_names_what_is_read_and_what_is_gone(folder, place):
    (folder / "t.tar").write_bytes(tar_of([("a.png", FIRST)]))
    facts = {"split": "test", "sha256": "0" * 64}
    files = [{"path": f"{n}.tar", "source": n} | facts for n in ("t", "gone")]
    (folder / "card.json").write_text(json.dumps({"manifpt": "1", "files": files}))
    found = read(place(folder))
    assert errors(found) == {"t/a": None, "gone/~broken": "broken_archive"}
    assert [row["source"] for row in found] == ["t", "gone"]


def test_a_card_that_leads_out_by_a_link_is_a_file(folder, tmp_path):
    (tmp_path / "out.tar").write_bytes(tar_of([("a.png", FIRST)]))
    (folder / "t.tar").symlink_to(tmp_path / "out.tar")
    file = {"path": "t.tar", "source": "s", "split": "test", "sha256": "0" * 64}
    (folder / "card.json").write_text(json.dumps({"manifpt": "1", "files": [file]}))
    assert [row["source"] for row in read(folder)] == [None] * 4


def test_what_is_no_file_is_a_row(folder):
    os.mkfifo(folder / "fifo.png")
    os.mkfifo(folder / "pipe.tar")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket.parquet"))
    (folder / "gone.png").symlink_to(folder / "nothing")
    (folder / "self.tar").symlink_to(folder / "self.tar")
    bad = ["fifo.png", "gone.png", "pipe.tar", "self.tar", "socket.parquet"]
    assert errors(read(folder)) == GOOD | dict.fromkeys(bad, "unreadable")


def test_folders_that_link_to_each_other_are_read_once(tmp_path):
    for name in "abcd":
        write_folder(tmp_path / "in" / name, "real", range(2))
    for one in "abcd":
        for other in "abcd":
            (tmp_path / "in" / one / f"to-{other}").symlink_to(tmp_path / "in" / other)
    skipped = Counter()
    found = read(tmp_path / "in", skipped)
    assert len(errors(found)) == len({os.path.realpath(row["uri"]) for row in found}) == 8
    assert skipped == {"folder_linked_again": 16}
    assert len(read(tmp_path / "in", labelled=True)) == 8


def test_folders_deeper_than_a_path_may_be_are_counted(folder):
    deep = str(folder / "d")
    for _ in range(1200):  # deeper than Python recurses
        os.mkdir(deep)
        deep += "/e"
    Path(deep[:-2], "x.png").write_bytes(FIRST)
    here = os.getcwd()
    os.chdir(folder)
    try:
        for _ in range(20):  # and than the system takes a path
            os.mkdir("n" * 250)
            os.chdir("n" * 250)
        skipped = Counter()
        assert list(errors(read(folder, skipped)).values()) == [None] * 3
        assert skipped == {"unreadable_folder": 1}
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", *folder.glob("[dn]*")], check=True)


REFUSALS = [
    (403, "InvalidObjectState"),
    (403, "AccessDenied"),
    (301, "PermanentRedirect"),
    (400, "IllegalLocationConstraintException"),
    (400, "KMS.DisabledException"),
    (404, "NoSuchKey"),
    (405, "MethodNotAllowed"),
]


@pytest.fixture
def refusing(s3, monkeypatch):
    with FaultyS3(int(os.environ["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy
    s3fs.S3FileSystem.clear_instance_cache()


def parquet_of(images):
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": images}), sink, row_group_size=1)
    return sink.getvalue()


def test_a_parquet_with_a_damaged_page_header_keeps_the_rows_before(folder, place):
    data = bytearray(parquet_of([FIRST, SECOND]))
    at = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(1).column(0)
    start = at.dictionary_page_offset or at.data_page_offset
    data[start : start + 8] = b"\xff" * 8
    (folder / "p.parquet").write_bytes(data)
    found = errors(read(f"{place(folder)}/p.parquet"))
    assert found == {"p/00000000": None, "p/~broken": "broken_archive"}


@pytest.fixture(scope="module")
def refused(s3):
    for name, data in [
        ("a.png", FIRST), ("b.png", SECOND), ("t.tar", tar_of([("x.png", FIRST)])),
        ("u.parquet", parquet_of([FIRST])), ("v.csv", b"url\na.png\nb.png\n"),
    ]:  # fmt: skip
        storage.write_bytes(f"{s3}/refused/{name}", data)
    return f"{s3}/refused"


@pytest.mark.parametrize(("status", "code"), REFUSALS)
def test_an_object_that_s3_refuses_is_a_row(refused, refusing, status, code):
    refusing.refused = dict.fromkeys(["b.png", "t.tar", "u.parquet", "v.csv"], (status, code))
    bad = {"b.png": "unreadable", "t/~broken": "broken_archive", "v.csv": "unreadable"}
    bad |= {"u/~broken": "broken_archive"}
    assert errors(read(refused)) == {"a.png": None} | bad
    found = read(f"{refused}/*.csv")
    assert errors(found) == {"v/~broken-00000000": "broken_archive"}
    refusing.refused = {"b.png": (status, code)}
    assert [row["error"] for row in read(f"{refused}/v.csv")] == [None, "unreadable"]


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "InvalidAccessKeyId"), (400, "ExpiredToken"), (401, "Unauthorized")],
)
@pytest.mark.parametrize("name", ["b.png", "t.tar", "u.parquet"])
def test_what_s3_says_of_the_caller_stops_the_job(refused, refusing, name, status, code):
    refusing.refused = {name: (status, code)}
    with pytest.raises(ManifptError) as caught:
        read(refused)
    assert "\n" not in str(caught.value)


def test_a_tar_and_a_table_that_vanish_are_one_row_each(refused, s3):
    gone = f"{s3}/vanishing"
    for name in ("t.tar", "v.csv"):
        storage.copy(f"{refused}/{name}", f"{gone}/{name}")
    found = [unit for name in ("*.tar", "*.csv") for unit in units([f"{gone}/{name}"])]
    storage.remove_files(gone, ".*")
    rows = [row for unit in found for table in read_unit(unit, RULE) for row in table.to_pylist()]
    assert errors(rows) == {
        "t/~broken": "broken_archive", "v/~broken-00000000": "broken_archive",
    }  # fmt: skip


def test_a_job_counts_what_it_skips_and_fails_if_nothing_is_left(ray_session, folder, tmp_path):
    model = handmade.attributor(tmp_path / "model")
    (folder / ".hidden").write_bytes(b"")
    (folder / "self").symlink_to(folder)
    (folder / "gone.png").symlink_to(folder / "nothing")
    flags = ["--model", model, "--output", f"{tmp_path}/out", "--input"]
    assert attribute.main([*flags, str(folder)]) == 0
    summary = storage.read_json(f"{tmp_path}/out/summary.json")
    assert summary["skipped"] == {"folder_linked_again": 1, "hidden": 1}
    assert (summary["ok"], summary["by_error"]) == (2, {"unreadable": 1})


def test_a_job_of_which_all_is_quarantined_says_so(ray_session, folder, tmp_path, capsys):
    model = handmade.attributor(tmp_path / "model")
    for path in folder.iterdir():
        path.write_bytes(b"no image")
    flags = ["--model", model, "--output", f"{tmp_path}/out", "--input", str(folder)]
    for _ in range(2):  # that the output is there already makes no difference
        assert attribute.main(flags) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "none of 2 images could be attributed (2 unknown_format)" in said
    rows = [
        storage.read_parquet(uri) for uri, _ in storage.files_under(f"{tmp_path}/out/quarantine")
    ]
    assert sum(table.num_rows for table in rows) == 2
