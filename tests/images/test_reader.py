"""The process that parses containers: its limits, and its death at any time."""

import io
import os
import signal
import subprocess
import sys
import tarfile

import pytest
from conftest import png, write_tar

from manifpt.images import DecodeRule, plan, reader
from manifpt.images.raw import raw_images
from manifpt.images.uri_tables import table_rows

LIMITED = (
    "from manifpt.images import reader_process as process\n"
    "process.MEMORY, process.SECONDS = {memory}, {seconds}\n"
    "process.main()"
)


@pytest.fixture
def limited(monkeypatch):
    """Let readers have less memory in bytes, or time in seconds, than they usually have."""

    def limit(memory=2**30, seconds=20.0):
        program = LIMITED.format(memory=memory, seconds=seconds)
        reader.close_idle()
        monkeypatch.setattr(reader, "COMMAND", (sys.executable, "-P", "-c", program))

    yield limit
    reader.close_idle()


def children():
    """The readers of this process."""
    found = subprocess.run(
        ["pgrep", "-P", str(os.getpid()), "-f", "reader_process"], capture_output=True, check=False
    )
    return [int(pid) for pid in found.stdout.split()]


def kill_readers():
    for pid in children():
        os.kill(pid, signal.SIGKILL)


def rows(path, **rule):
    units = plan([str(path)], quiet=True)
    return [raw for unit in units for raw in raw_images(unit, DecodeRule(16, **rule))]


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "csv", "jsonl"])
def test_every_text_and_tar_is_read_within_limits(tmp_path, ending):
    path = tmp_path / f"t.{ending}"
    if ending.startswith("tar"):
        mode = "w:gz" if ending == "tar.gz" else "w"
        with tarfile.open(path, mode) as tar:
            tar.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    else:
        path.write_text("url\nx.png\n" if ending == "csv" else '{"url": "x.png"}\n')
    reader.close_idle()
    assert len(rows(path)) == 1
    (child,) = children()
    with open(f"/proc/{child}/limits") as limits:
        (data,) = [line.split()[3] for line in limits if line.startswith("Max data size")]
    assert int(data) == 3 * 2**30


def test_a_reader_that_is_killed_costs_no_member(tmp_path):
    images = {f"{n:04}.png": png("real", n) + bytes(100_000) for n in range(300)}
    write_tar(tmp_path / "t.tar", list(images.items()))
    (unit,) = plan([str(tmp_path / "t.tar")], quiet=True)
    found = []
    for raw in raw_images(unit, DecodeRule(16)):
        found.append(raw)
        if len(found) == 90:
            kill_readers()
    assert [raw.data for raw in found] == list(images.values())
    assert len({raw.id for raw in found}) == 300


def test_a_reader_that_is_killed_costs_no_record(tmp_path):
    lines = [f"{n}.png,{'x' * 1000}" for n in range(20_000)]
    (tmp_path / "t.csv").write_text("\n".join(["url,caption", *lines]))
    found = []
    for unit in plan([str(tmp_path / "t.csv")], quiet=True):
        for row in table_rows(unit):
            found.append(row)
            if len(found) in {5, 5000}:
                kill_readers()
    assert [row.fields["url"] for row in found] == [f"{n}.png" for n in range(20_000)]
    assert [row.number for row in found] == list(range(20_000))


def test_a_member_beyond_the_memory_costs_the_rest_alone(tmp_path, limited):
    limited(memory=2**28)
    path = write_tar(tmp_path / "t.tar", [("a.png", png("real", 0))])
    with tarfile.open(path, "a") as tar, open(tmp_path / "zeros", "w+b") as zeros:
        zeros.truncate(2**29)
        info = tarfile.TarInfo("b.png")
        info.size = 2**29
        tar.addfile(info, zeros)
    first, second = rows(path, max_bytes=2**30)
    assert (first.data, second.error) == (png("real", 0), "broken_archive")
    assert "more memory than the limit" in second.message


def test_a_text_beyond_the_time_costs_the_rest_alone(tmp_path, limited):
    """The limit leaves no time for its first record."""
    (tmp_path / "t.csv").write_text("url\n" + "x.png\n" * 100)
    (unit,) = plan([str(tmp_path / "t.csv")], quiet=True)
    limited(seconds=1e-6)
    (only,) = raw_images(unit, DecodeRule(16))
    assert only.error == "broken_archive"
    assert "takes more than" in only.message


def test_lists_in_json_lines_are_text_and_no_uri(tmp_path):
    deep = "[" * 900 + "]" * 900
    texts = ['{"url": ["x.png"]}', f'{{"url": "y.png", "deep": {deep}, "n": [1, "ü"]}}']
    (tmp_path / "t.jsonl").write_text("\n".join(texts))
    (unit,) = plan([str(tmp_path / "t.jsonl")], quiet=True)
    first, second = table_rows(unit)
    assert first.fields == {"url": None}
    assert (second.fields["url"], second.fields["n"]) == ("y.png", '[1, "ü"]')
    assert second.fields["deep"] in {deep, None}
