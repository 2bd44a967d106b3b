"""Storage that fails, disks that fill, processes that die: right counts, or one line and resume."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import handmade
import pyarrow as pa
import pytest
import s3fs
import test_pipeline
from conftest import write_folder
from faulty_s3 import FaultyS3
from test_pipeline import Copy, hashes, read

from manifpt import storage
from manifpt.engine import attempts, chunk_work, pipeline, progress, rollup, session
from manifpt.engine.pools import Pool
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, plan, read_unit
from manifpt.jobs import attribute
from manifpt.outputs import layouts, liveness

ROOT = Path(__file__).parents[1]
POOL = Pool(1, 0.5, 0, 1)


@pytest.fixture
def faulty(s3, monkeypatch):
    """A proxy before the S3 server, to which this process and those it starts talk."""
    with FaultyS3(int(os.environ["AWS_ENDPOINT_URL"].rsplit(":", 1)[1])) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy
    s3fs.S3FileSystem.clear_instance_cache()


def tables_of(inputs: str) -> pa.Table:
    units = plan([inputs])
    return pa.concat_tables(t for unit in units for t in read_unit(unit, DecodeRule(16)))


def test_reading_and_writing_outlast_a_server_that_fails_for_some_requests(
    s3, faulty, corpus, tmp_path
):
    folder = f"{s3}/faulty"
    handmade.tars(tmp_path / "tars", 2, 30)
    for path in (*(tmp_path / "tars").iterdir(), *sorted((corpus / "manifold").iterdir())[:15]):
        storage.write_bytes(f"{folder}/{path.name}", path.read_bytes())
    calm = tables_of(folder)
    faulty.share, faulty.slow = 0.2, 0.05
    assert tables_of(folder).equals(calm)
    assert calm["error"].null_count == len(calm) - 1
    uris = [f"{folder}/_out/{n}" for n in range(30)]
    contents = [bytes([n]) * 10_000 for n in range(30)]
    for uri, content in zip(uris, contents, strict=True):
        storage.write_bytes(uri, content)
    assert list(storage.read_many(uris)) == contents
    fs, path = storage.arrow_filesystem(f"{folder}/_out")
    found = [fs.open_input_stream(f"{path}/{n}").read() for n in range(30)]
    assert found == contents
    assert min(faulty.failed, faulty.slowed) > 5


@pytest.mark.parametrize("kind", ["files", "tar"])
def test_credentials_that_expire_stop_the_reading_and_cost_no_row(
    s3, faulty, corpus, tmp_path, kind
):
    folder = f"{s3}/expiring-{kind}"
    source = handmade.tars(tmp_path, 1, 20) if kind == "tar" else corpus / "manifold"
    for path in source.iterdir():
        storage.write_bytes(f"{folder}/{path.name}", path.read_bytes())
    (unit,) = plan([folder])
    faulty.expired = True
    with pytest.raises(ManifptError, match=r"expired|denied") as caught:
        list(read_unit(unit, DecodeRule(16)))
    assert "\n" not in str(caught.value)
    assert kind == "tar" or "renew them; the same command goes on" in str(caught.value)


def test_a_full_disk_is_one_line(tmp_path):
    code = f"""
import resource, sys
from manifpt import storage
from manifpt.errors import ManifptError
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    storage.write_bytes({str(tmp_path / "out/x.bin")!r}, bytes(5000))
except ManifptError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert "no space left" in done.stdout
    assert "goes on from here" in done.stdout
    assert list((tmp_path / "out").iterdir()) == []


class DiesOnce(Copy):
    """Kills its process at the first chunk that it sees of a unit, once."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __call__(self, table: pa.Table) -> chunk_work.Result:
        die_once(self.mark)
        return Copy()(table)


def die_once(mark: Path) -> None:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


class Full(Copy):
    """Finds its disk full."""

    def __call__(self, table: pa.Table) -> chunk_work.Result:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
        return Copy()(table)


class Poisoned(Copy):
    """Dies of one chunk each time."""

    def __call__(self, table: pa.Table) -> chunk_work.Result:
        if "2/4" in table["id"].to_pylist():
            os.kill(os.getpid(), signal.SIGKILL)
        return Copy()(table)


def run(output: Path, stage, reader=read) -> pipeline.Records:
    from ray import cloudpickle

    for module in (sys.modules[__name__], test_pipeline):  # Ray's workers cannot import tests
        cloudpickle.register_pickle_by_value(module)
    return pipeline.run("test", map(str, range(4)), reader, stage, str(output), POOL)


def test_kills_and_a_full_disk_change_no_byte(ray_session, tmp_path, capsys):
    def reader(spec):
        for n, table in enumerate(read(spec)):
            if (spec, n) == ("1", 2):
                die_once(tmp_path / "reader")
            yield table

    reader.gives = read.gives
    with pytest.raises(Exception) as caught:  # noqa: PT011 Ray wraps it
        run(tmp_path / "disturbed", Full)
    assert "no space left" in str(session.cause(caught.value))
    found = run(tmp_path / "disturbed", lambda: DiesOnce(tmp_path / "actor"), reader)
    assert (tmp_path / "reader").exists()
    assert (tmp_path / "actor").exists()
    assert pipeline.totals(found)["rows_in"] == 48
    place = chunk_work.Place(str(tmp_path / "calm"), 0.0)
    for unit in range(4):
        for row in chunk_work.chunks(read, str(unit), unit, set()):
            chunk_work.work(Copy(), row, place)
    folders = ("attributions", "quarantine")
    # As a job does: the actor may have been killed while it wrote a file.
    layouts.clear_halves(str(tmp_path / "disturbed"), "attributions")
    calm, disturbed = (hashes(tmp_path / name, *folders) for name in ("calm", "disturbed"))
    assert calm == disturbed
    assert len(calm) == 24


@pytest.mark.slow
def test_a_chunk_that_kills_its_process_each_time_stops_the_job_in_one_line(ray_session, tmp_path):
    with pytest.raises(Exception) as caught:  # noqa: PT011 Ray wraps it
        run(tmp_path, Poisoned)
    error = str(session.cause(caught.value))
    died = f"the process that works on it died {attempts.DEATHS}"
    assert f"unit 2, chunk 1, rows 2/4 to 2/7: {died}" in error
    assert pipeline.totals(run(tmp_path, Copy))["rows_in"] == 48

    def poisoned(spec):
        if spec == "3":
            os.kill(os.getpid(), signal.SIGKILL)
        yield from read(spec)

    poisoned.gives = read.gives
    with pytest.raises(Exception) as caught:  # noqa: PT011 Ray wraps it
        run(tmp_path / "reading", Copy, poisoned)
    assert f"unit 3, 3: {died}" in str(session.cause(caught.value))


def test_an_output_that_cannot_be_written_is_one_line(ray_session, corpus, tmp_path, capsys):
    model = handmade.attributor(tmp_path / "model")
    (tmp_path / "file").write_text("")
    flags = ["--input", f"{corpus}/manifold", "--model", model]
    assert attribute.main([*flags, "--output", f"{tmp_path}/file/out"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_quarantined_rows_are_tried_again(ray_session, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rollup, "FEW", 1)  # the files hold rows of several chunks
    model = handmade.attributor(tmp_path / "model")
    images = write_folder(tmp_path / "images", "stripes", range(12))
    whole = (images / "0003.png").read_bytes()
    (images / "0003.png").write_bytes(whole[:60])
    (images / "0005.png").write_bytes(b"no image")
    tar = next(handmade.tars(tmp_path / "tar", 1, 20).iterdir())
    data = tar.read_bytes()
    (images / "x.tar").write_bytes(data[: len(data) // 2])
    flags = ["--input", str(images), "--model", model, "--output", f"{tmp_path}/out"]
    assert attribute.main([*flags, "--retry-quarantined"]) == 2
    assert attribute.main(flags) == 0
    first = storage.read_json(f"{tmp_path}/out/summary.json")
    assert first["by_error"]["broken_archive"] == 1
    before = hashes(tmp_path / "out", "attributions")
    assert all("-p." in name for name in before)

    (images / "0003.png").write_bytes(whole)
    (images / "0007.png").unlink()  # one that was attributed
    (images / "x.tar").write_bytes(data)
    assert attribute.main([*flags, "--retry-quarantined", "nonsense"]) == 2
    capsys.readouterr()
    (tmp_path / "out" / "attributions" / "labels.csv").write_bytes(b"mine")
    assert attribute.main([*flags, "--retry-quarantined"]) == 0
    assert (tmp_path / "out" / "attributions" / "labels.csv").read_bytes() == b"mine"
    (tmp_path / "out" / "attributions" / "labels.csv").unlink()
    manifest = storage.read_json(f"{tmp_path}/out/manifest.json")
    # The whole tar has 20 members, of which one is no image, as is 0005.png.
    assert (manifest["rows_in"], manifest["ok"], manifest["quarantined"]) == (32, 30, 2)
    assert manifest["by_error"] == {"unknown_format": 2}
    tables = ("attributions", "quarantine")
    listed = {file["path"] for file in manifest["files"] if file["folder"] in tables}
    after = hashes(tmp_path / "out", *tables)
    assert set(after) == listed
    assert before.items() <= after.items()
    rows = [storage.read_parquet(f"{tmp_path}/out/{path}").to_pylist() for path in listed]
    ids = [row["id"] for part in rows for row in part]
    assert len(set(ids)) == len(ids) == 32
    assert {"0003.png", "0007.png", "x/000019"} <= set(ids)
    assert not (tmp_path / "out" / "_retry.json").exists()

    assert attribute.main([*flags, "--retry-quarantined", "unreadable"]) == 0  # none is left
    assert storage.read_json(f"{tmp_path}/out/manifest.json")["files"] == manifest["files"]
    assert attribute.main(["--status", f"{tmp_path}/out"]) == 0
    assert "finished" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("images", "kills"), [(500, 4), (5000, 20)])
def test_random_kills_of_actors_workers_nodes_and_the_driver_change_no_byte(images, kills):
    flags = ["--images", str(images), "--kills", str(kills)]
    done = subprocess.run(
        [sys.executable, "tests/drill.py", *flags], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["kills"] == dict.fromkeys(("actor", "worker", "node", "driver"), kills // 4)
    assert (found["rows_in"], found["identical"], found["left_over"]) == (images, True, [])
    assert found["ok"] + found["quarantined"] == images


def job(*flags: str, **env: str) -> subprocess.CompletedProcess:
    """Run the job as a command, with a Ray of its own."""
    return subprocess.run(
        [sys.executable, "-m", "jobs.attribute", *flags],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | env,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_on_s3_outlasts_failures_and_goes_on_when_credentials_are_renewed(
    s3, faulty, tmp_path
):
    model = handmade.attributor(tmp_path / "model")
    handmade.tars(tmp_path / "tars", 12, 40)
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    fs.put(str(tmp_path / "tars"), "manifpt/job/tars", recursive=True)
    flags = ["--input", f"{s3}/job/tars", "--model", model, "--num-actors", "1", "--output"]
    calm = job(*flags, f"{s3}/job/calm")
    assert calm.returncode == 0, calm.stderr[-2000:]

    faulty.share, faulty.slow = 0.05, 1.0
    faulty.expire_after = faulty.writes + 20
    expired = job(*flags, f"{s3}/job/faulty")
    assert expired.returncode == 2, expired.stderr[-2000:]
    assert expired.stderr.splitlines()[-1].startswith("attribute: s3://manifpt/job/")
    assert "expired" in expired.stderr.splitlines()[-1]
    assert "Traceback" not in expired.stderr
    faulty.expire_after, faulty.expired = None, False
    # Its last sign of life could not be taken away either: it grows old.
    later = time.time() + liveness.SILENCE_SECONDS
    assert progress.status(f"{s3}/job/faulty", later)["state"] == "interrupted"
    renewed = job(*flags, f"{s3}/job/faulty")
    assert renewed.returncode == 0, renewed.stderr[-2000:]
    assert faulty.failed + faulty.slowed > 5

    def tables(output: str) -> dict[str, bytes]:
        folders = [f"{s3}/job/{output}/{name}" for name in ("attributions", "quarantine")]
        uris = [uri for folder in folders for uri, _ in storage.files_under(folder)]
        return {uri.removeprefix(f"{s3}/job/{output}"): storage.read_bytes(uri) for uri in uris}

    assert tables("calm") == tables("faulty")
    assert storage.read_json(f"{s3}/job/faulty/summary.json")["rows_in"] == 480
