"""The last lines of a job, and what attributions count for them."""

import io
import json
import re
import subprocess
import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifpt.attribution.crawl.verdicts import SHOWN, total_verdicts, verdicts
from manifpt.attribution.unknown.decision import DECISIONS
from manifpt.cli import job
from manifpt.cli.answer import Part, answer, show
from manifpt.cli.job_options import JobConfig


def text_of(parts: list[Part]) -> str:
    file = io.StringIO()
    show(parts, file)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


SHARE = st.sampled_from([0.0, 0.1, 0.5, 0.9999999, 1.0])
ROWS = st.lists(
    st.tuples(st.sampled_from(["gan", "vae", "real"]), SHARE, st.sampled_from(DECISIONS), SHARE),
    min_size=1,
    max_size=30,
)


def table(rows: list[tuple], scored: bool = True) -> pa.Table:
    lines = [(f"{n:03d}", *row) for n, row in enumerate(rows)]
    columns = dict(zip(SHOWN, zip(*lines, strict=True), strict=True))
    if not scored:
        columns["unknown_p"] = [None] * len(rows)
    return pa.table({name: list(values) for name, values in columns.items()})


@given(rows=ROWS, cut=st.integers(0, 30), scored=st.booleans())
def test_verdicts_do_not_depend_on_how_the_table_was_cut(rows, cut, scored):
    whole = table(rows, scored)
    parts = [verdicts(part) for part in (whole.slice(0, cut), whole.slice(cut))]
    assert total_verdicts(parts) == total_verdicts([verdicts(whole)])
    found = total_verdicts(parts)
    frame = whole.to_pandas()
    counts = {k: n for d in found["predictions"].values() for k, n in d.items()}
    assert set(counts) == set(frame["decision"])
    assert sum(sum(d.values()) for d in found["predictions"].values()) == len(rows)
    assert bool(found["strangest"]) == scored
    sure = frame[frame["decision"].isin(["generator", "real"])]["probability"].round(6)
    assert [row["probability"] for row in found["surest"]] == sorted(sure, reverse=True)[:3]


@pytest.mark.parametrize("name", ["report", "explain"])
def test_a_page_is_linked_from_the_last_line(name, tmp_path):
    page = tmp_path / "my page.html"
    last = text_of(answer(name, {"output": str(page), "bytes": 1})).splitlines()[-1]
    assert last == f"page: {page.as_uri()}"
    assert " " not in last.removeprefix("page: ")
    assert text_of(answer(name, {"output": "s3://b/x.html"})).endswith("page: s3://b/x.html")
    assert "page" not in text_of(answer(name, {"output": None, "bytes": 1}))


def test_attribute_ends_in_counts_extremes_places_and_the_next_command():
    rows = [
        ("gan", 0.99, "generator", 0.8),
        ("gan", 0.4, "unsure", 0.5),
        ("real", 0.7, "real", 0.001),
    ]
    summary = {"output": "OUT", "ok": 3, "quarantined": 2, "by_error": {"unreadable": 2}}
    summary |= verdicts(table(rows)) | {"duplicates": {"exact": 0}}
    printed = text_of(answer("attribute", summary))
    assert printed.startswith("3 images attributed, 2 quarantined: unreadable 2\n")
    assert re.search(r"^gan +2 +1 +0 +0 +1$", printed, re.MULTILINE)
    assert re.search(r"^real +1 +0 +1 +0 +0$", printed, re.MULTILINE)
    assert re.search(r"surest.*\n000 +gan +0.99 +generator", printed)
    assert re.search(r"strangest.*\n002 +real +0.7 +real +0.001", printed)
    assert "OUT/attributions/, OUT/quarantine/, OUT/duplicates/" in printed
    assert "read_parquet('OUT/attributions')" in printed.splitlines()[-1]


def test_an_output_from_before_has_counts_alone():
    summary = {"output": "OUT", "ok": 3, "quarantined": 0, "by_error": {}}
    assert text_of(answer("attribute", summary)).startswith("3 images attributed, 0 quarantined\n")


def test_other_jobs_show_single_values_and_what_is_next():
    summary = {"output": "M", "rows_in": 12345, "by_error": {"small": 2}, "accuracy": 0.87654321}
    summary |= {"history": [1, 2], "nested": {"a": {"b": 1}}, "empty": {}}
    lines = text_of(answer("train_attribution", summary)).splitlines()
    names = [line.split("  ")[0] for line in lines[:-1]]
    assert names == ["output", "rows in", "by error", "accuracy"]
    assert lines[1].endswith("12,345")
    assert lines[3].endswith("0.8765")
    assert lines[-1] == "next: manifpt attribute --model M --input IMAGES --output VERDICTS"


@pytest.mark.parametrize("terminal", [False, True])
def test_json_is_for_what_is_no_terminal(monkeypatch, capsys, terminal):
    class Out(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    out = Out()
    monkeypatch.setattr("sys.stdout", out)
    code = job.main("job", JobConfig, lambda *_: {"images": 3}, "", [], on_ray=False)
    assert code == 0
    assert "images  3" in capsys.readouterr().err
    assert out.getvalue() == "" if terminal else json.loads(out.getvalue()) == {"images": 3}


def test_a_dry_run_has_no_next_command():
    summary = {"job": "attribute", "dry_run": True, "output": "verdicts"}
    said = text_of(answer("attribute", summary))
    assert "dry run" in said
    assert "next:" not in said


def test_tables_fit_a_terminal_and_have_colours_there_alone(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    long = "crawl/" + "x" * 80 + ".png"
    row = {"id": long, "prediction": "gan", "probability": 1.0, "decision": "generator"}
    summary = {"output": "OUT", "ok": 1, "quarantined": 0, "surest": [row | {"unknown_p": 0.5}]}
    answered = answer("attribute", summary)
    terminal = Terminal()
    show(answered, terminal)
    assert "\x1b[31mgenerator" in terminal.getvalue()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    table = plain[plain.index("surest") : plain.index("tables:")]
    assert max(map(len, table.splitlines())) <= 60
    assert "".join(line[:20].split("  ")[0] for line in table.splitlines()[1:]).startswith("crawl/")
    assert long in text_of(answered)
    assert "\x1b" not in text_of(answered)


def test_the_reader_of_the_json_may_stop_before_its_end():
    code = """
from manifpt.cli import job
from manifpt.cli.job_options import JobConfig
summary = {"rows": list(range(100_000))}
raise SystemExit(job.main("job", JobConfig, lambda *_: summary, "", [], on_ray=False))
"""
    command = f"set -o pipefail; {sys.executable} -c '{code}' | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "{")
    assert "Error" not in done.stderr
