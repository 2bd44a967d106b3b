"""Who may work in a folder: claims of one process, of two at once, of the dead; what is removed."""

import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifpt import storage
from manifpt.engine import session
from manifpt.errors import DamageError, ManifptError
from manifpt.outputs import claims, layouts, liveness, records
from manifpt.outputs.claims import TakenError, Terms

KEY, OTHER = "0" * 64, "1" * 64


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("gs", "az")]


@pytest.fixture(params=["local", "s3", *SLOW])
def place(request, tmp_path):
    """A folder that is not there yet, local, on S3, on gs:// and on az://."""
    if request.param == "local":
        return str(tmp_path / "out")
    return f"{request.getfixturevalue(request.param)}/claims/{tmp_path.name}"


def part(folder: str, name: str = "000000-000000", data: bytes = b"rows") -> dict:
    path = f"attributions/{name}.parquet"
    return {"path": path, **storage.write_bytes(f"{folder}/{path}", data)}


def files(folder: str) -> dict[str, bytes]:
    """All files under a folder, with what they hold."""
    found = [uri for uri, _ in storage.all_files(folder)]
    return {uri[len(folder) + 1 :]: storage.read_bytes(uri) for uri in found}


def finish(folder: str, key: str = KEY, data: bytes = b"rows", **options) -> None:
    with claims.claim(folder, "attributions", key, **options) as claim:
        claim.publish({"files": [part(folder, data=data)]})


def test_a_finished_output_is_found_and_nothing_else_is_left(place):
    finish(place)
    assert set(files(place)) == {"manifest.json", "attributions/000000-000000.parquet"}
    with claims.claim(place, "attributions", KEY) as again:
        assert again.finished["key"] == KEY


def test_other_settings_need_overwrite_which_leaves_what_others_wrote(place):
    finish(place)
    storage.write_bytes(f"{place}/attributions/notes.txt", b"mine")
    storage.write_bytes(f"{place}/thesis.partial", b"mine")
    with pytest.raises(ManifptError, match=r"made with other settings.*--overwrite"):
        finish(place, OTHER)
    with claims.claim(place, "attributions", OTHER, terms=Terms(overwrite=True)) as claim:
        assert "attributions/000000-000000.parquet" not in files(place)
        claim.publish({"files": []})
    assert files(place)["attributions/notes.txt"] == files(place)["thesis.partial"] == b"mine"


def test_an_abandoned_folder_is_as_it_was_before(place):
    with claims.claim(place, "attributions", KEY) as claim:
        part(place)
        storage.write_bytes(f"{place}/attributions/notes.txt", b"mine")
        claim.abandon()
    assert files(place) == {"attributions/notes.txt": b"mine"}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("thesis.txt", b"keep"),
        (".hidden", b"keep"),
        ("manifest.json", b"{}"),
        ("manifest.json", b'{"kind": "lock", "key": 1}'),
        ("manifest.json", b"\xff"),
        ("deep/er/000000-000000.parquet", b"keep"),
        ("_plan.json", b"[]"),
        ("_plan.json", b'{"kind": "my plan"}'),
        ("artifacts/notes", b"keep"),
    ],
)
def test_a_folder_of_strangers_is_refused_and_stays(place, name, data):
    storage.write_bytes(f"{place}/{name}", data)
    for terms in (claims.AS_IS, Terms(overwrite=True, take_over=True)):
        with pytest.raises(ManifptError, match="choose") as error:
            finish(place, terms=terms)
        assert "\n" not in str(error.value)
    assert files(place) == {name: data}


@pytest.mark.parametrize("inside", ["", "x", "x/y"])
def test_an_output_keeps_out_of_what_is_read(tmp_path, inside):
    folder = tmp_path / "a" / inside
    folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for output, read in ((folder, tmp_path / "link"), (tmp_path / "link", folder)):
        with pytest.raises(ManifptError, match="--model"):
            finish(str(output), apart=[("--model", str(read))])
    finish(str(tmp_path / "ab"), apart=[("--model", str(tmp_path / "a"))])


def test_prefixes_of_s3_are_folders_too():
    for output, read in (
        ("s3://b/a/x", "s3://b/a/"),
        ("s3://b/a", "s3://b/a/x"),
        ("s3://b", "s3://b/a"),
    ):
        with pytest.raises(ManifptError, match="--model"):
            claims.check_apart(output, [("--model", read)])
    claims.check_apart("s3://b/ab", [("--model", "s3://b/a"), ("--input", "/b/ab")])


def test_a_part_that_another_wrote_is_not_published_and_is_done_again(place):
    with claims.claim(place, "attributions", KEY) as claim:
        entry = part(place)
        storage.write_json(records.uri_of(place, 0, 0), {"unit": 0})
        storage.write_bytes(f"{place}/{entry['path']}", b"another")
        with pytest.raises(DamageError, match="the same command makes it again"):
            claim.publish({"files": [entry]})
    assert not storage.exists(records.uri_of(place, 0, 0))
    assert not storage.exists(f"{place}/manifest.json")


def test_of_many_claims_at_once_one_works(place):
    entered, refused = [], []
    release = threading.Event()

    def work():
        try:
            with claims.claim(place, "attributions", KEY):
                entered.append(1)
                release.wait(60)
        except ManifptError as error:
            refused.append(str(error))

    liveness_seconds, liveness.DYING_SECONDS = liveness.DYING_SECONDS, 0.5
    try:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        while len(refused) < 7 and len(entered) < 2:
            time.sleep(0.1)
        release.set()
        for thread in threads:
            thread.join()
    finally:
        liveness.DYING_SECONDS = liveness_seconds
    assert (len(entered), len(refused)) == (1, 7)
    for text in refused:
        assert f"process {os.getpid()} on" in text
        assert "--take-over" in text


HOLD = """
import sys, time
from manifpt.outputs import claims
with claims.claim(sys.argv[1], "attributions", sys.argv[2]) as claim:
    print("held", flush=True)
    time.sleep(100)
"""


def held(folder: str, key: str = KEY) -> subprocess.Popen:
    """A process that holds a claim."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder, key], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_claim_of_a_killed_process_is_taken_at_once(place):
    process = held(place)
    process.kill()  # and not waited for: a process that nobody has asked about is dead, too
    started = time.monotonic()
    finish(place)
    assert time.monotonic() - started < 10
    process.wait()


def test_overwrite_refuses_a_live_run_and_take_over_ends_it(place, monkeypatch):
    monkeypatch.setattr(liveness, "DYING_SECONDS", 0.5)
    with claims.claim(place, "attributions", OTHER) as claim:
        part(place, data=b"first")
        process = subprocess.run(
            [sys.executable, "-c", f"""
from manifpt.outputs import claims, liveness
from manifpt.errors import ManifptError
liveness.DYING_SECONDS = 0.5
for terms in (claims.AS_IS, claims.Terms(overwrite=True)):
    try:
        with claims.claim({place!r}, "attributions", {KEY!r}, terms=terms):
            raise AssertionError
    except ManifptError as error:
        print(error)
terms = claims.Terms(overwrite=True, take_over=True)
with claims.claim({place!r}, "attributions", {KEY!r}, terms=terms) as claim:
    claim.publish({{"files": []}})
"""],
            capture_output=True,
            text=True,
            check=True,
        )  # fmt: skip
        first, second = process.stdout.splitlines()
        assert "made with other settings" in first
        assert f"process {os.getpid()} on" in second
        assert "--take-over" in second
        with pytest.raises(TakenError, match="has taken it over"):
            claims.check(place, claim.token)
        with pytest.raises(TakenError):
            claim.publish({"files": []})
    assert set(files(place)) == {"manifest.json"}
    assert layouts.read(place, layouts.MANIFEST)["key"] == KEY


def test_an_error_of_a_run_that_lost_its_claim_names_the_other_run(place):
    with pytest.raises(TakenError, match=r"another run \(.*\) has taken it over") as caught:
        fails_in_claim(place, token="b" * 32)
    assert session.cause(caught.value) is caught.value  # which is the line that a job prints
    with pytest.raises(ManifptError, match="no such file"):
        fails_in_claim(f"{place}-other")


def fails_in_claim(folder: str, **plan: str) -> None:
    with claims.claim(folder, "attributions", KEY):
        uri = f"{folder}/{layouts.PLAN}"
        storage.write_json(uri, layouts.read(folder, layouts.PLAN) | plan)
        raise ManifptError("no such file")


def test_a_run_of_another_host_is_dead_after_a_silence(place, monkeypatch):
    monkeypatch.setattr(liveness, "SILENCE_SECONDS", 4.0)
    monkeypatch.setattr(liveness, "BEAT_SECONDS", 0.5)
    process = held(place)
    plan = layouts.read(place, layouts.PLAN)
    storage.write_json(f"{place}/{layouts.PLAN}", plan | {"host": "elsewhere"})
    process.kill()
    process.wait()
    storage.write_json(f"{place}/{layouts.ALIVE}", {"token": plan["token"]})
    started = time.monotonic()
    finish(place)
    assert 1 < time.monotonic() - started < 15


def test_a_live_run_of_another_host_is_left_alone(place, monkeypatch):
    monkeypatch.setattr(liveness, "BEAT_SECONDS", 1.5)
    with claims.claim(place, "attributions", KEY):
        plan = layouts.read(place, layouts.PLAN)
        storage.write_json(f"{place}/{layouts.PLAN}", plan | {"host": "elsewhere"})
        with pytest.raises(ManifptError, match=r"on elsewhere, begun .* last sign of life"):
            finish(place)


def test_the_remains_of_a_run_that_was_killed_at_its_start_are_no_strangers(tmp_path):
    (tmp_path / ".lock").write_bytes(storage.LOCK_MARK)
    (tmp_path / "_plan.json.01234567.partial").write_bytes(b"")
    sign = {"token": "0", "started": 1.0, "beat": 1.0}
    storage.write_json(f"{tmp_path}/{layouts.ALIVE}", sign)
    (tmp_path / "artifacts").mkdir()
    with claims.claim(str(tmp_path), "attributor", KEY) as claim:
        claim.publish({})


def test_a_prefix_with_the_letters_of_a_pattern_is_not_one(s3, tmp_path):
    folder, beside = f"{s3}/{tmp_path.name}/run[1]", f"{s3}/{tmp_path.name}/run1"
    finish(folder)
    finish(beside)
    finish(folder, OTHER, terms=Terms(overwrite=True))
    assert set(files(beside)) == {"manifest.json", "attributions/000000-000000.parquet"}
    assert layouts.read(folder, layouts.MANIFEST)["key"] == OTHER


def test_what_was_not_cleared_to_the_end_is_cleared_later(tmp_path, monkeypatch):
    folder = str(tmp_path / "out")
    with claims.claim(folder, "evaluation", KEY) as claim:
        storage.write_bytes(f"{folder}/metrics.json", b"{}")
        claim.publish({})
    with monkeypatch.context() as patched:
        patched.setattr(layouts, "clear", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            finish(folder, terms=Terms(overwrite=True))
    os.unlink(f"{folder}/manifest.json")  # as if killed after the first file
    finish(folder, OTHER, terms=Terms(overwrite=True))
    assert "metrics.json" not in files(folder)


def test_artifacts_that_a_run_trains_on_are_not_replaced_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(liveness, "DYING_SECONDS", 0.2)
    folder, terms = str(tmp_path / "t"), Terms(overwrite=True)
    with (
        claims.claim(folder, "attributor", KEY),
        pytest.raises(ManifptError, match="another run works there"),
    ):
        claims.check_place(folder, "attributor", [], terms)


@pytest.mark.parametrize(
    ("made", "kind"),
    [("m", "manifold"), ("a", "artifacts"), ("t", "attributor"), ("e", "evaluation")],
)
def test_an_output_that_is_cleared_leaves_nothing(chain, tmp_path, made, kind):
    shutil.copytree(chain / made, tmp_path / made)
    layouts.clear(str(tmp_path / made), kind)
    assert not (tmp_path / made).exists() or files(str(tmp_path / made)) == {}


NAMES = """
a.txt _plan.json manifest.json _alive.json .lock x.partial _records/a _records/000000-000000.json
attributions/000000-000000.parquet attributions/x.parquet summary.json weights.pt artifacts/a
_work/index.json _training/a _epochs/00000.json shard-00000/rows.parquet test/a rgb/manifest.json
card.json real/train.tar.gz attributions/000000-000000.parquet.0123abcd.partial
"""


@settings(max_examples=60, deadline=None)
@given(
    strangers=st.dictionaries(
        st.sampled_from(NAMES.split()), st.binary(max_size=8), min_size=1, max_size=4
    ),
    kind=st.sampled_from(sorted(layouts.KINDS)),
    ending=st.sampled_from(["publish", "abandon", "error", "leave"]),
)
def test_no_file_of_others_is_touched_whatever_happens(tmp_path_factory, strangers, kind, ending):
    folder = tmp_path_factory.mktemp("any")
    for name, data in strangers.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    before = files(str(folder))
    terms = Terms(overwrite=True, take_over=True)
    for output in (str(folder), str(folder / "inside")):
        try:
            with claims.claim(output, kind, KEY, terms=terms) as claim:
                storage.write_bytes(f"{output}/_work/index.json", b"{}")
                if ending == "error":
                    raise ManifptError("stop")
                if ending != "leave":
                    claim.publish({}) if ending == "publish" else claim.abandon()
        except ManifptError:
            pass
    after = files(str(folder))
    assert {name: after.get(name) for name in before} == before
