"""Storage on gs:// and az://, on real servers; what they cannot answer, a stand-in does."""

import http.server
import json
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import azure_server
import gcs_server
import pytest
from conftest import png, write_folder, write_tar
from pyarrow.fs import FileType, LocalFileSystem, copy_files

from manifpt import storage
from manifpt.errors import ManifptError
from manifpt.images import DecodeRule, plan, read_unit
from manifpt.images.contents import content
from manifpt.images.decode import DecodeError
from manifpt.images.sources import content_key
from manifpt.jobs import build_manifold, compute_artifacts
from manifpt.storage import azure, blob_filesystem

ODD = "odd/*?[x] é#%41 {a,b}+&=.txt"


@pytest.fixture(params=["gs", "az"])
def place(request, tmp_path):
    """A prefix of this test's own."""
    return f"{request.getfixturevalue(request.param)}/{tmp_path.name}"


@pytest.mark.parametrize("name", ["a/b.txt", ODD])
def test_what_is_written_is_read_retried_and_removed(place, name):
    uri = f"{place}/{name}"
    assert not storage.exists(uri)
    written = storage.write_bytes(uri, b"hello")
    assert storage.read_bytes(uri) == b"hello"
    assert storage.sha256(uri) == written["sha256"]
    assert storage.exists(uri)
    assert storage.exists(uri.rpartition("/")[0])
    assert storage.all_files(place) == [(uri, 5)]
    assert 0 <= storage.age(uri) < 100
    storage.copy(uri, f"{uri}.copy", written["sha256"])
    assert list(storage.read_many([uri, f"{uri}.copy"])) == [b"hello"] * 2
    storage.remove_file(uri)
    storage.remove_file(uri)
    assert storage.all_files(place) == [(f"{uri}.copy", 5)]
    assert storage.age(uri) is None


def test_a_file_of_several_parts_is_whole_or_not_there(place):
    piece = bytes(range(256)) * 2**12
    with storage.writing(f"{place}/large") as file:
        for _ in range(12):
            file.write(piece)
    assert storage.read_bytes(f"{place}/large") == piece * 12
    with storage.reading(f"{place}/large") as file:
        file.seek(11 * 2**20 + 1)
        assert file.read(3) == b"\1\2\3"
    for pieces in (1, 12):
        with pytest.raises(KeyError):
            fail_after(pieces * piece, f"{place}/failed")
        assert not storage.exists(f"{place}/failed")


def fail_after(data, uri):
    with storage.writing(uri) as file:
        file.write(data)
        raise KeyError


def test_names_and_files_are_those_of_a_folder(place):
    for name in ("one", "two/a", "two/b", "three/deep/c", ".hidden", "z[1]/d"):
        storage.write_bytes(f"{place}/{name}", b"x")
    assert storage.names(place) == [".hidden", "one", "three/", "two/", "z[1]/"]
    assert storage.names(f"{place}/none") == []
    found = [uri.removeprefix(f"{place}/") for uri, _ in storage.files_under(place)]
    assert found == ["one", "three/deep/c", "two/a", "two/b", "z[1]/d"]
    storage.remove_files(place, r"(two|three)/.*")
    assert storage.names(place) == [".hidden", "one", "z[1]/"]
    storage.remove_files(f"{place}/z[1]", r"d")
    assert storage.names(place) == [".hidden", "one"]


def test_of_many_at_once_one_creates_and_one_replaces(place):
    uri = f"{place}/claim.json"
    contents = [b"%d" % number for number in range(16)]
    with ThreadPoolExecutor(16) as threads:
        created = list(threads.map(lambda data: storage.create(uri, data), contents))
        data, version = storage.read_versioned(uri)
        assert [one for one, did in zip(contents, created, strict=True) if did] == [data]
        replaced = threads.map(lambda data: storage.replace(uri, data, version), contents)
        won = [one for one, did in zip(contents, replaced, strict=True) if did]
    assert won == [storage.read_bytes(uri)]
    version = storage.read_versioned(uri)[1]
    storage.write_bytes(uri, won[0])
    assert not storage.replace(uri, b"same content, later version", version)
    storage.remove_file(uri)
    assert not storage.replace(uri, b"gone", version)
    assert not storage.exists(uri)


def test_images_are_found_and_read_as_from_a_folder(place, tmp_path):
    root = tmp_path / "in"
    write_folder(root / "sub", "real", range(3))
    (root / "sub" / "empty.png").write_bytes(b"")
    write_tar(root / "0.tar", [(f"{n}.png", png("real", n)) for n in range(2)])
    (root / "t.csv").write_text("url\nsub/0000.png\nsub/gone.png\n../../secret.png\n")
    for path in (p for p in root.rglob("*") if p.is_file()):
        storage.write_bytes(f"{place}/{path.relative_to(root)}", path.read_bytes())
    for pattern in ("", "/*.tar", "/**/000[12].png", "/{sub,0.tar}"):
        local, remote = (plan([f"{where}{pattern}"]) for where in (root, place))
        assert [u.ids for u in local] == [u.ids for u in remote]
        assert content_key(local) == content_key(remote)
    for name in ("sub", "0.tar"):
        one, other = (rows(f"{where}/{name}") for where in (root, place))
        same = ("id", "error", "sha256", "pixel_sha256")
        assert [[row[c] for c in same] for row in one] == [[row[c] for c in same] for row in other]
    found = [row["error"] for row in rows(f"{place}/t.csv")]
    assert found == [None, "unreadable", "forbidden_address"]


def rows(uri):
    tables = [table for unit in plan([uri]) for table in read_unit(unit, DecodeRule(16))]
    return [row for table in tables for row in table.to_pylist()]


def test_a_listing_has_several_pages(place, monkeypatch):
    for number in range(5):
        storage.write_bytes(f"{place}/{number}", b"x")
    monkeypatch.setattr(blob_filesystem, "PAGE_OBJECTS", 2)
    prefix = f"{place.rpartition('/')[2]}/"
    pages = [[key for key, _ in page.objects] for page in storage.pages(place, prefix)]
    assert len(pages) > 2
    assert [key for page in pages for key in page] == [f"{prefix}{number}" for number in range(5)]


def test_a_listing_leaves_out_the_folders_of_azures_data_lake(az, tmp_path):
    key = tmp_path.name
    storage.write_bytes(f"{az}/{key}/folder/x", b"x")
    marker = azure.filesystem().service_client.get_blob_client("manifpt", f"{key}/folder")
    azure._sync(marker.upload_blob, b"", metadata={"hdi_isfolder": "true"})
    assert storage.names(f"{az}/{key}") == ["folder/"]
    assert storage.all_files(f"{az}/{key}") == [(f"{az}/{key}/folder/x", 1)]


def test_content_has_a_limit(place):
    storage.write_bytes(f"{place}/x", b"12345")
    storage.write_bytes(f"{place}/empty", b"")
    assert content(f"{place}/x", 5) == b"12345"
    assert content(f"{place}/empty", 5) == b""
    for uri, limit, code in ((f"{place}/x", 4, "too_many_bytes"), (f"{place}/y", 4, "unreadable")):
        with pytest.raises(DecodeError) as error:
            content(uri, limit)
        assert error.value.code == code


def test_pyarrow_has_a_filesystem_of_it_that_workers_can_be_given(place, tmp_path):
    filesystem, path = storage.arrow_filesystem(f"{place}/checkpoint")
    filesystem = pickle.loads(pickle.dumps(filesystem))
    (tmp_path / "model.pt").write_bytes(b"weights")
    # As Ray Train keeps checkpoints and gets them back.
    filesystem.create_dir(path)
    copy_files(str(tmp_path), path, LocalFileSystem(), filesystem)
    assert storage.read_bytes(f"{place}/checkpoint/model.pt") == b"weights"
    (tmp_path / "back").mkdir()
    copy_files(path, f"{tmp_path}/back", filesystem, LocalFileSystem())
    assert (tmp_path / "back" / "model.pt").read_bytes() == b"weights"
    info = filesystem.get_file_info([path, f"{path}/none"])
    assert [one.type for one in info] == [FileType.Directory, FileType.NotFound]
    filesystem.delete_dir(path)
    assert not storage.exists(f"{place}/checkpoint/model.pt")


SERVERS = {
    "gs": (gcs_server.VARIABLE, str),
    "az": (azure_server.VARIABLE, azure_server.connection_string),
}


def ask(store, address, monkeypatch):
    """Let a store be asked at another address."""
    variable, named = SERVERS[store]
    monkeypatch.setenv(variable, named(address))


@pytest.fixture
def answers():
    """A server that gives one answer to all requests: a list of its status, code and message."""
    answer = [200, 200, ""]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, code, message = answer
            body = json.dumps({"error": {"code": code, "message": message}}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield answer, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


DENIED = "a@b.iam.gserviceaccount.com does not have storage.objects.get access to the object."


@pytest.mark.parametrize(
    ("store", "status", "code", "message", "of_object", "line"),
    [
        ("gs", 404, 404, "Not Found", True, "no such file, folder or bucket"),
        ("gs", 403, 403, DENIED, True, f"access denied ({DENIED}); give the account the role"),
        ("gs", 403, 403, "The project's billing account is closed", False, "access denied"),
        ("gs", 400, 400, "The object name is invalid", True, "invalid; check the path"),
        ("gs", 401, 401, "Anonymous caller", False, "gcloud auth application-default login"),
        ("az", 404, "ContainerNotFound", "It is not there", True, "no such file, folder or contai"),
        ("az", 403, "AuthorizationPermissionMismatch", "Not so", True, "Not so); check AZURE_STOR"),
        ("az", 403, "AuthenticationFailed", "Wrong key", False, "Wrong key); check AZURE_STORAGE"),
        ("az", 409, "BlobArchived", "It is offline", True, "It is offline; check the path"),
        ("az", 400, "InvalidBlockList", "No such block", True, "another process writes this file"),
        ("az", 401, "NoAuthenticationInformation", "Who?", False, "no valid Azure credentials"),
    ],
)
def test_a_refusal_is_one_line_and_tells_whose_fault_it_is(
    store, status, code, message, of_object, line, answers, monkeypatch
):
    answers[0][:] = status, code, message
    ask(store, answers[1], monkeypatch)
    with pytest.raises(ManifptError) as error:
        storage.read_bytes(f"{store}://bucket/key")
    text = str(error.value)
    assert text.startswith(f"{store}://bucket/key: ")
    assert line in text
    assert "\n" not in text
    assert "canary" not in text
    with pytest.raises(DecodeError if of_object else ManifptError):
        content(f"{store}://bucket/key", 10)


@pytest.mark.slow
@pytest.mark.parametrize("status", [0, 503])
@pytest.mark.parametrize("store", SERVERS)
def test_a_server_that_fails_is_one_line_after_a_while(store, status, answers, monkeypatch):
    answers[0][:] = status, status, "busy"
    ask(store, answers[1] if status else "http://127.0.0.1:9", monkeypatch)
    with pytest.raises(ManifptError, match="the same command goes on from here"):
        storage.read_bytes(f"{store}://bucket/key")


@pytest.mark.parametrize("store", SERVERS)
def test_without_credentials_or_library_an_error_names_the_remedy(store, monkeypatch, tmp_path):
    for name in (gcs_server.VARIABLE, *azure.VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", f"{tmp_path}/none.json")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "nobody")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    monkeypatch.delenv("AZURE_CLIENT_ID", raising=False)
    monkeypatch.setattr(blob_filesystem, "_refused", {})
    variable = {
        "gs": "GOOGLE_APPLICATION_CREDENTIALS",
        "az": "AZURE_STORAGE_CONNECTION_STRING",
    }[store]
    for _ in range(2):
        with pytest.raises(ManifptError, match=f"{store}://bucket/key: .*set {variable}"):
            storage.read_bytes(f"{store}://bucket/key")
    assert len(blob_filesystem._refused) == 1
    blob_filesystem._refused.clear()
    module, extra = {"gs": ("gcsfs.core", "gcs"), "az": ("adlfs", "azure")}[store]
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "manifpt.storage.azure_filesystem", raising=False)
    with pytest.raises(ManifptError, match=rf"pip install 'manifpt\[{extra}\]'"):
        storage.write_bytes(f"{store}://bucket/key", b"")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, "az:// needs an account; set AZURE_STORAGE_CONNECTION_STRING"),
        ({"CONNECTION_STRING": "canary"}, "CONNECTION_STRING is not valid"),
        ({"CONNECTION_STRING": "AccountName=a;AccountKey=canary!"}, "no valid Azure credentials"),
    ],
)
def test_settings_that_name_no_account_of_azures_are_one_line(given, line, monkeypatch):
    for name in azure.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    with pytest.raises(ManifptError) as error:
        storage.read_bytes("az://bucket/key")
    assert line in str(error.value)
    assert "canary" not in str(error.value)


@pytest.mark.parametrize(
    ("variable", "value", "kind"),
    [
        ("ACCOUNT_KEY", "canary", "SharedKeyCredentialPolicy"),
        ("SAS_TOKEN", "?sv=1&sig=canary", "AzureSasCredentialPolicy"),
        ("ANON", "true", "NoneType"),
    ],
)
def test_an_account_of_azures_has_a_key_or_a_token_or_neither(variable, value, kind, monkeypatch):
    for name in azure.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "mine")
    monkeypatch.setenv(f"AZURE_STORAGE_{variable}", value)
    client = azure.filesystem().service_client
    assert client.url.startswith("https://mine.blob.core.windows.net/")
    assert type(client._credential_policy).__name__ == kind
    assert b"canary" not in pickle.dumps(azure.arrow())


def test_jobs_on_az_answer_as_on_disk_and_write_no_key(az, ray_session, tmp_path, capfd):
    write_folder(tmp_path / "manifold", "real", range(40))
    write_folder(tmp_path / "stripes", "stripes", range(40, 60))
    here, there = str(tmp_path), f"{az}/{tmp_path.name}"
    for path in tmp_path.rglob("*.png"):
        storage.copy(str(path), f"{there}/{path.relative_to(tmp_path)}")
    for images in (here, there):
        m, a = f"{images}/out/m", f"{images}/out/a"
        reals = ["--input", f"real={images}/manifold", "--shards", "2"]
        assert build_manifold.main([*reals, "--output", m]) == 0
        flags = ["--input", f"stripes={images}/stripes", "--manifold", m, "--output", a]
        assert compute_artifacts.main(flags) == 0
    for name in ("m", "a"):
        one, two = (storage.read_json(f"{p}/out/{name}/manifest.json") for p in (here, there))
        assert one["key"] == two["key"]
    assert artifacts(f"{here}/out/a") == artifacts(f"{there}/out/a") != []
    files = [storage.read_bytes(uri) for uri, _ in storage.all_files(f"{there}/out")]
    assert [data for data in files if b"canary" in data] == []
    assert "canary" not in "".join(capfd.readouterr())


def artifacts(output):
    """The rows of artifacts, but for where their images lie."""
    splits = [storage.join(output, split) for split in ("train", "validation", "test")]
    files = [uri for split in splits for uri, _ in storage.files_under(split)]
    tables = [storage.read_parquet(uri).drop_columns("uri") for uri in files]
    return [row for table in tables for row in table.to_pylist()]
