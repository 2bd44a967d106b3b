"""Two runs of jobs.attribute in one output at once: one line for the loser, and no file of two."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import handmade
import pytest

from manifpt import storage
from manifpt.outputs import layouts
from manifpt.outputs.verified import entries, wrong

ROOT = Path(__file__).parents[1]
ROUNDS = int(os.environ.get("MANIFPT_ROUNDS", "20"))
# What the second run is: the same command; one of other settings; the same after a kill.
SECONDS = {
    "same": [],
    "other": ["--sure", "0.99", "--overwrite"],
    "takes over": ["--sure", "0.99", "--overwrite", "--take-over"],
    "after a kill": [],
}


def begun(*flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "jobs.attribute", *flags, "--num-actors", "1"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)


def last_line(process: subprocess.Popen) -> str:
    text = process.communicate(timeout=280)[1].decode()
    assert "Traceback" not in text, text
    return text.splitlines()[-1]


def round_of(kind: str, seed: int, crawl: Path, model: str, output: str) -> str:
    """Run two at once, with a random pause between; return how both ended."""
    rng = random.Random(seed)
    flags = ["--input", str(crawl), "--model", model, "--output", output]
    first = begun(*flags)
    until = time.monotonic() + 60
    while not storage.exists(f"{output}/{layouts.PLAN}") and time.monotonic() < until:
        time.sleep(0.2)
    time.sleep(rng.uniform(0, 6))
    if kind == "after a kill":
        first.send_signal(signal.SIGKILL)
    second = begun(*flags, *SECONDS[kind])
    lines = {first: last_line(first), second: last_line(second)}
    for process, line in lines.items():
        if process.returncode == 2:
            assert "another run" in line, line
    assert 0 in {first.returncode, second.returncode}, lines
    return f"{kind}: {first.returncode} and {second.returncode}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_runs_at_once_publish_what_one_wrote(s3, tmp_path):
    model = handmade.attributor(tmp_path / "model")
    crawl = handmade.tars(tmp_path / "crawl", 12, 40)
    ended: Counter[str] = Counter()
    for number in range(ROUNDS):
        kind = list(SECONDS)[number % len(SECONDS)]
        output = f"{s3}/two/{number}" if number % 3 == 0 else str(tmp_path / f"out-{number}")
        ended[round_of(kind, number, crawl, model, output)] += 1
        manifest = storage.read_json(f"{output}/manifest.json")
        assert manifest["rows_in"] == 480
        assert wrong(output, entries(manifest)) == []
        stray = [uri for uri, _ in storage.all_files(output) if "partial" in uri or "_plan" in uri]
        assert stray == []
    print("\n".join(f"{count:3} x {kind}" for kind, count in sorted(ended.items())))
    assert ended["takes over: 0 and 0"] + ended["takes over: 2 and 0"] > 0
