"""Artifacts of stored embeddings are those of the images, bit for bit."""

import pytest
from conftest import write_folder

from manifpt import outputs, storage
from manifpt.artifacts.branches import read_artifacts
from manifpt.jobs import build_manifold, compute_artifacts


@pytest.fixture(scope="module")
def made(ray_session, tmp_path_factory):
    """Manifolds by two metrics, the second of the first's reals; embeddings of other images."""
    root = tmp_path_factory.mktemp("reprojection")
    reals = write_folder(root / "reals", "real", range(80))
    for kind in ("stripes", "blocks"):
        write_folder(root / "labelled" / kind, kind, range(500, 540))
    write_folder(root / "labelled" / "seen", "real", range(5))
    flags = ["--space", "freq", "--shards", "2"]
    assert build_manifold.main(["--input", str(reals), "--output", f"{root}/m", *flags]) == 0
    flags = ["--input", f"{root}/m", "--metric", "cosine", "--reals", "50"]
    assert build_manifold.main([*flags, "--output", f"{root}/cosine"]) == 0
    flags = ["--input", f"{root}/labelled", "--manifold", f"{root}/m", "--projector", "none"]
    assert compute_artifacts.main([*flags, "--output", f"{root}/e"]) == 0
    return root


def rows(uri):
    manifest = outputs.require(str(uri), "artifacts", "artifacts")
    files = [f["path"] for f in manifest["files"] if f["folder"] != "quarantine"]
    found = [r for path in files for r in read_artifacts(storage.join(str(uri), path)).to_pylist()]
    return {row["id"]: row for row in found}, manifest


@pytest.mark.parametrize("manifold", [pytest.param("m", marks=pytest.mark.slow), "cosine"])
def test_artifacts_of_embeddings_are_those_of_images(made, tmp_path, manifold):
    how = ["--manifold", f"{made}/{manifold}", "--projector", "tangent", "--neighbors", "5"]
    for name, given in (("direct", "labelled"), ("again", "e")):
        flags = ["--input", f"{made}/{given}", *how, "--output", f"{tmp_path}/{name}"]
        assert compute_artifacts.main(flags) == 0
    (direct, first), (again, second) = rows(tmp_path / "direct"), rows(tmp_path / "again")
    assert direct == again
    assert any(row["in_manifold"] for row in again.values())
    for name in ("space", "manifold_sha256", "projection", "classes", "rows_in", "ok", "inputs"):
        assert first[name] == second[name], name
    for moment in ("mean", "std"):
        assert first["moments"]["train"][moment] == pytest.approx(
            second["moments"]["train"][moment], rel=1e-6, abs=1e-9
        )


def test_a_manifold_of_some_reals_is_a_sample_of_its_source(made, tmp_path):
    source = outputs.require(f"{made}/m", "manifold", "m")
    for count in (50, 20):
        flags = ["--input", f"{made}/m", "--reals", str(count), "--output", f"{tmp_path}/{count}"]
        assert build_manifold.main(flags) == 0
    fifty, twenty = (outputs.require(f"{tmp_path}/{n}", "manifold", "m") for n in (50, 20))
    assert (fifty["reals"], twenty["reals"]) == (50, 20)

    def hashes(uri, manifest):
        paths = [storage.join(str(uri), s["rows"]["path"]) for s in manifest["shards"]]
        return {h for p in paths for h in storage.read_parquet(p)["pixel_sha256"].to_pylist()}

    every, some, few = (
        hashes(uri, m)
        for uri, m in (
            (f"{made}/m", source),
            (f"{tmp_path}/50", fifty),
            (f"{tmp_path}/20", twenty),
        )
    )
    assert few < some < every
    assert some == set(sorted(every)[:50])
    flags = ["--input", f"{made}/m", "--output", f"{tmp_path}/all"]
    assert build_manifold.main(flags) == 0
    whole = outputs.require(f"{tmp_path}/all", "manifold", "m")
    assert whole["content_sha256"] == source["content_sha256"]
    assert fifty["content_sha256"] != source["content_sha256"]


@pytest.mark.parametrize(
    ("job", "flags", "message"),
    [
        (build_manifold, ["--input", "M", "--reals", "81"], "has 80; ask for fewer"),
        (build_manifold, ["--input", "M", "--space", "rgb"], "--space: the manifold"),
        (build_manifold, ["--input", "REALS", "--reals", "5"], "build it, then"),
        (compute_artifacts, ["--input", "E", "--manifold", "M", "--split", "test"], "leave it out"),
        (compute_artifacts, ["--input", "A", "--manifold", "M"], "artifacts, not embeddings"),
        (compute_artifacts, ["--input", "E", "--manifold", "RGB"], "another space"),
    ],
)
def test_what_does_not_go_together(made, tmp_path, job, flags, message, capsys):
    places = {"M": f"{made}/m", "REALS": f"{made}/reals", "E": f"{made}/e"}
    places |= {"A": f"{made}/a", "RGB": f"{made}/rgb"}
    if "A" in flags:
        given = ["--input", f"{made}/e", "--manifold", f"{made}/m", "--output", f"{made}/a"]
        assert compute_artifacts.main(given) == 0
    if "RGB" in flags:
        given = ["--input", f"{made}/reals", "--output", f"{made}/rgb"]
        assert build_manifold.main(given) == 0
    given = [places.get(flag, flag) for flag in flags]
    assert job.main([*given, "--output", f"{tmp_path}/out"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
