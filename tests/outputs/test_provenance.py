"""The commit and the versions that manifests name: the package's own, or none."""

import re
import subprocess
import time

import pytest

from manifpt import __version__, outputs
from manifpt.outputs import claims, provenance

COMMIT = re.compile(r"[0-9a-f]{40}")


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """Ask anew in each test, without the commit that the environment names."""
    monkeypatch.delenv("MANIFPT_GIT_COMMIT", raising=False)
    provenance.git_commit.cache_clear()
    yield
    provenance.git_commit.cache_clear()


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout that tracks one file; the package's file lies in it and is not tracked."""
    installed = tmp_path / ".venv" / "provenance.py"
    installed.parent.mkdir()
    installed.write_text("")
    (tmp_path / "readme").write_text("")
    git(tmp_path, "init")
    git(tmp_path, "add", "readme")
    git(tmp_path, "commit", "-m", "first")
    monkeypatch.setattr(provenance, "__file__", str(installed))
    return tmp_path


def test_the_commit_is_that_of_a_checkout_that_tracks_the_package(checkout):
    assert provenance.git_commit() == "unknown"
    git(checkout, "add", ".venv/provenance.py")
    assert provenance.git_commit() == "unknown"  # asked once a process
    provenance.git_commit.cache_clear()
    assert COMMIT.fullmatch(provenance.git_commit())


def test_no_checkout_and_no_git_and_no_answer_are_unknown(tmp_path, checkout, monkeypatch):
    git(checkout, "add", ".venv/provenance.py")
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    assert provenance.git_commit() == "unknown"
    (tools / "git").write_text("#!/bin/sh\nexec /bin/sleep 30\n")
    (tools / "git").chmod(0o755)
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.2)
    provenance.git_commit.cache_clear()
    began = time.monotonic()
    assert provenance.git_commit() == "unknown"
    assert time.monotonic() - began < 10
    monkeypatch.setenv("MANIFPT_GIT_COMMIT", "abc")
    provenance.git_commit.cache_clear()
    assert provenance.git_commit() == "abc"


def test_a_manifest_names_the_code_and_another_commit_finds_it_finished(tmp_path, monkeypatch):
    monkeypatch.setenv("MANIFPT_GIT_COMMIT", "one")
    folder, key = str(tmp_path / "out"), "0" * 64
    with claims.claim(folder, "attributions", key) as claim:
        # Entries of an earlier manifest, on which the body is based, do not stay.
        claim.publish({"files": [], "commit": "zero"})
    made = outputs.read(folder)
    assert (made["commit"], made["manifpt"], made["key"]) == ("one", __version__, key)
    assert made["versions"] == provenance.versions()
    assert {"python", "numpy", "torch"} <= set(made["versions"])
    provenance.git_commit.cache_clear()
    monkeypatch.setenv("MANIFPT_GIT_COMMIT", "two")
    with claims.claim(folder, "attributions", key) as again:
        assert again.finished == made
