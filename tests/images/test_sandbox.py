import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import draw
from PIL import Image

from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, plan, read_unit, sandbox
from manifpt.images.decode import ERRORS, Decoded, DecodeError, decode, decoded_or_error

RULE = DecodeRule(16, max_seconds=0.2)
POISONED = (sys.executable, "-P", str(Path(__file__).parents[1] / "poisoned_decoder.py"))


def png(number: int, ending: str = "", size: int = 16) -> bytes:
    """A picture; bytes behind its end are nothing to PNG."""
    sink = io.BytesIO()
    Image.fromarray(draw("real", number, size)).save(sink, "PNG")
    return sink.getvalue() + ending.rjust(8).encode() * bool(ending)


@pytest.fixture
def poisoned(monkeypatch):
    sandbox._close_idle()
    monkeypatch.setattr(sandbox, "COMMAND", POISONED)
    yield
    sandbox._close_idle()


def decoded(images: list[bytes], rule: DecodeRule = RULE, sizes=()):
    found = list(sandbox.decode_all(enumerate(images), rule, sizes))
    assert [number for number, _ in found] == list(range(len(images)))
    return [one for _, one in found]


def same(found, expected) -> bool:
    if isinstance(expected, DecodeError):
        return (found.code, str(found)) == (expected.code, str(expected))
    arrays, others = (([one.looks, one.pixels, *one.others]) for one in (found, expected))
    pairs = zip(arrays, others, strict=True)
    return found[1:4] == expected[1:4] and all(np.array_equal(a, b) for a, b in pairs)


def test_the_child_decodes_as_decode_does():
    sink = io.BytesIO()
    Image.fromarray(draw("real", 0, 40)).save(sink, "JPEG")
    noise = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (900, 1000, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(noise, "BMP")  # larger than any pipe, and than all that is ahead
    images = [png(1), b"", b"no image", png(2)[:70], sink.getvalue(), *[noise.getvalue()] * 5]
    images = [*images, *map(png, range(100))]
    found = decoded(images, RULE, (8, 24))
    assert all(
        same(f, decoded_or_error(data, RULE, (8, 24)))
        for f, data in zip(found, images, strict=True)
    )
    assert [f.code for f in found[1:4]] == ["empty", "unknown_format", "truncated"]


def test_an_image_that_ends_its_decoder_costs_its_row_only(poisoned):
    poison = {
        3: ("segfault", "crashed"),
        4: ("leave", "crashed"),
        7: ("kill", "crashed"),
        8: ("mislead", "crashed"),
        9: ("spin", "too_slow"),
        12: ("sleep", "too_slow"),
    }
    images = [png(n, poison.get(n, ("",))[0]) for n in range(14)]
    for n, one in enumerate(decoded(images)):
        if n in poison:
            assert isinstance(one, DecodeError)
            assert one.code == poison[n][1]
            assert one.code in ERRORS
        else:
            assert same(one, decode(images[n], RULE))


def test_an_image_is_not_blamed_for_what_an_earlier_one_did(poisoned):
    images = [png(n, "damage" * (n == 2)) for n in range(6)]
    assert all(same(f, decode(d, RULE)) for f, d in zip(decoded(images), images, strict=True))


def test_a_small_file_that_wants_much_memory_or_time_gets_its_code():
    sink = io.BytesIO()
    Image.new("L", (5000, 5000)).save(sink, "PNG")
    images = [png(0), sink.getvalue(), png(1)]
    for rule, code in [
        (DecodeRule(16, max_memory=100 * 2**20), "too_much_memory"),
        (DecodeRule(16, max_seconds=0.02), "too_slow"),
        (DecodeRule(16, max_pixels=10**6), "too_many_pixels"),
    ]:
        first, poison, last = decoded(images, rule)
        assert poison.code == code
        assert same(first, decode(images[0], rule))
        assert same(last, decode(images[2], rule))
    assert isinstance(decoded(images, DecodeRule(16))[1], Decoded)  # else the rest says nothing


def test_streams_may_be_interleaved_and_left():
    images = [png(n) for n in range(200)]
    one = sandbox.decode_all(enumerate(images), RULE)
    other = sandbox.decode_all(enumerate(images), DecodeRule(8))
    for n, ((_, a), (_, b)) in enumerate(zip(one, other, strict=False)):
        assert same(a, decode(images[n], RULE))
        assert same(b, decode(images[n], DecodeRule(8)))
        if n == 20:
            break
    one.close()
    other.close()
    assert all(same(f, decode(d, RULE)) for f, d in zip(decoded(images), images, strict=True))


def test_one_child_serves_unit_after_unit_and_holds_no_credentials(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret-8412")
    sandbox._close_idle()
    decoded([png(0)])
    (kept,) = sandbox._idle
    decoded([png(1)])
    assert sandbox._idle == [kept]
    environment = Path(f"/proc/{kept.child.process.pid}/environ").read_bytes()
    assert b"PYTHONPATH" in environment
    assert b"AWS" not in environment


PARENT = """
import sys, time
from manifpt.images import DecodeRule, sandbox
data = open(sys.argv[1], "rb").read()
list(sandbox.decode_all([(0, data)], DecodeRule(16)))
print(sandbox._idle[0].child.process.pid, flush=True)
time.sleep(100)
"""


def test_the_child_ends_with_its_parent(tmp_path):
    (tmp_path / "image.png").write_bytes(png(0))
    command = [sys.executable, "-c", PARENT, str(tmp_path / "image.png")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(100):
        time.sleep(0.05)
        if not alive(child):
            break
    assert not alive(child)


def alive(pid: int) -> bool:
    """Tell whether a process runs; an ended one that nobody waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_child_that_can_not_start_is_an_error_of_the_job_and_not_of_its_images(monkeypatch):
    sandbox._close_idle()
    monkeypatch.setattr(sandbox, "COMMAND", (sys.executable, "-c", "import pillow_is_not_here"))
    with pytest.raises(ManifptError, match=r"pillow_is_not_here.*check the Python environment"):
        decoded([png(0)])


def test_read_unit_quarantines_the_poisoned_file_alone(poisoned, tmp_path):
    for n in range(8):
        (tmp_path / f"{n}.png").write_bytes(png(n, "segfault" * (n == 5)))
    rows = [r for u in plan([str(tmp_path)]) for t in read_unit(u, RULE) for r in t.to_pylist()]
    assert [row["error"] for row in rows] == [None] * 5 + ["crashed"] + [None] * 2
    assert rows[5]["message"] == "by signal 11"
    assert rows[5]["sha256"] is not None
