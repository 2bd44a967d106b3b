"""A training looks at the files of its images first, and stops where these reveal the classes."""

import io
import tarfile

import numpy as np
import pandas as pd
import pytest
from conftest import draw, png, write_folder, write_tar
from PIL import Image

from manifpt import outputs, storage
from manifpt.artifacts.branches import open_artifacts
from manifpt.artifacts.compute import ArtifactRecipe, compute_artifacts
from manifpt.artifacts.reprojection import project_embeddings
from manifpt.attribution.model.extend import extend_attributor
from manifpt.attribution.model.train import AttributorControl, train_attributor
from manifpt.attribution.model.training_recipe import TrainingRecipe
from manifpt.audit import sample
from manifpt.audit.property_report import of_properties
from manifpt.audit.sample import KEPT, READ, kept_sample, merged, rank, sampled_properties
from manifpt.audit.training_audit import (
    THRESHOLDS,
    TRAINED,
    UNAUDITED,
    Settings,
    audit_artifacts,
    audit_before,
    audit_extension,
    verdict_of,
    worst,
)
from manifpt.engine.pools import HERE
from manifpt.errors import DamageError, FailedAuditError
from manifpt.images import Selection, plan
from manifpt.images.read import unit_to_json
from manifpt.jobs import compute_artifacts as compute_artifacts_job
from manifpt.jobs import extend, train_attribution
from manifpt.manifold.build import build_manifold
from manifpt.manifold.projector import projection_of
from manifpt.outputs import claims
from manifpt.registry import model_card
from manifpt.report.page_provenance import FoundAttributor, audit_of, model_parts

NONE = projection_of("none", None, 0.0)
READ_OF = ["id", "source", *READ]


def write_jpegs(folder, kind, numbers):
    folder.mkdir(parents=True)
    for number in numbers:
        Image.fromarray(draw(kind, number)).save(folder / f"{number}.jpg", quality=80)
    return folder


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """Reals that are JPEG, and a generator's images that are PNG."""
    root = tmp_path_factory.mktemp("biased")
    real = write_jpegs(root / "real", "real", range(60))
    return [f"real={real}", f"gan={write_folder(root / 'gan', 'stripes', range(60))}"]


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    root = tmp_path_factory.mktemp("alike")
    kinds = {"real": "real", "gan": "stripes"}
    return [f"{name}={write_folder(root / name, k, range(60))}" for name, k in kinds.items()]


def read(inputs, most, selection=Selection()):
    units = [unit_to_json(unit) for unit in plan(inputs, labelled=True, quiet=True)]
    return merged([sampled_properties(units, selection, most)], most)


def test_a_format_of_one_class_stops_a_training(biased, tmp_path, capsys):
    with pytest.raises(FailedAuditError) as error:
        audit_before(biased, f"{tmp_path}/t", demand=HERE)
    line = str(error.value)
    assert error.value.exit_code == 3
    assert "\n" not in line
    for words in ("property format", "gan PNG, real JPEG", "manifpt normalize", "--accept-biased"):
        assert words in line
    assert not (tmp_path / "t").exists()
    found = audit_before(biased, f"{tmp_path}/t", Settings(accept=True), demand=HERE)
    assert (found["verdict"], found["images"], found["note"]) == ("fail", 120, TRAINED)
    assert capsys.readouterr().err.startswith("audit: fail: ")


def test_images_stored_alike_pass_and_are_not_read_retried(alike, tmp_path, capsys, monkeypatch):
    found = audit_before(alike, f"{tmp_path}/t", demand=HERE)
    assert (found["verdict"], found["findings"]) == ("pass", [])
    assert "note" not in found
    assert (tmp_path / "t" / "audit" / "audit.md").read_text().startswith("# Audit: pass")
    monkeypatch.setattr(sample, "raw_images", None)
    assert audit_before(alike, f"{tmp_path}/t", demand=HERE) == found
    assert capsys.readouterr().err.count("audit: pass: ") == 2


def test_an_audit_of_other_images_is_replaced_until_the_training_is_finished(
    biased, alike, tmp_path
):
    with pytest.raises(FailedAuditError):
        audit_before(biased, f"{tmp_path}/t", demand=HERE)
    assert audit_before(alike, f"{tmp_path}/t", demand=HERE)["verdict"] == "pass"


def test_without_two_classes_there_is_no_verdict_and_no_file(alike, tmp_path):
    assert audit_before(alike[:1], f"{tmp_path}/t", demand=HERE) is None
    assert audit_before(alike, f"{tmp_path}/t", Settings(images=0), demand=HERE) is None
    assert audit_before(alike, f"{tmp_path}/t", sources=["real"], demand=HERE) is None
    assert not (tmp_path / "t").exists()


def test_the_sample_is_of_the_smallest_hashes_and_no_other_file_is_read(alike, tmp_path):
    root = write_folder(tmp_path / "a", "real", range(40))
    names = sorted((f"a/{n:04d}.png" for n in range(40)), key=rank)
    found = read([f"a={root}", *alike], 10)
    mine = found[found["source"] == "a"]
    assert sorted(mine["id"]) == sorted(names[:10])
    assert found["source"].value_counts().to_dict() == {"a": 10, "real": 10, "gan": 10}
    for name in names[10:]:
        (root / name.removeprefix("a/")).write_bytes(b"no image")
    again = read([f"a={root}", *alike], 10)
    pd.testing.assert_frame_equal(again[READ_OF], found[READ_OF])


def test_of_tars_a_bounded_number_of_images_is_looked_at(tmp_path, monkeypatch):
    members = [(f"{n:04d}.png", png("real", n)) for n in range(40)]
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", members)
    seen = []
    monkeypatch.setattr(sample, "_take", lambda _, raw: seen.append(raw.id))
    read([f"a={tmp_path}"], 3)
    assert len(seen) == sample.LOOKED * 3
    assert {name.split("/")[1] for name in seen} == {"0", "1", "2"}
    monkeypatch.undo()
    first, second = (read([f"a={tmp_path}"], 3) for _ in range(2))
    assert first["id"].tolist() == second["id"].tolist()
    assert len(first) == 3


def test_splits_that_are_not_learned_from_are_left_out(tmp_path):
    sink = io.BytesIO()
    Image.fromarray(draw("real", 1)).save(sink, "JPEG")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in (
            ("1.jpg", sink.getvalue()),
            ("1.json", b'{"split": "test", "source": "real"}'),
            ("2.png", png("real", 2)),
            ("2.json", b'{"split": "train", "source": "real"}'),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = read([f"{tmp_path}/x.tar"], 5, Selection(("train", "validation")))
    assert found["format"].tolist() == ["PNG"]


def test_formats_without_a_plain_header_are_told_by_the_decoder(tmp_path):
    Image.fromarray(draw("real", 1)).save(tmp_path / "1.webp")
    (tmp_path / "2.webp").write_bytes(b"RIFF....WEBPno image")
    found = read([f"real={tmp_path}"], 5)
    assert found[["format", "width"]].to_numpy().tolist() == [["WEBP", 16]]


def of_random(seed, each):
    """Properties that vary, but not by class."""
    rng = np.random.default_rng(seed)
    count = 2 * each
    return pd.DataFrame(
        {
            "source": np.repeat(["a", "b"], each),
            "width": rng.integers(100, 2000, count),
            "quality": rng.choice([75, 80, 90, 95], count),
            "exif": rng.random(count) < 0.3,
        }
    )


@pytest.mark.parametrize("each", [3, 10, 40])
def test_few_images_do_not_fail_by_chance(each):
    names = ("width", "quality", "exif")
    verdicts = [
        finding.verdict
        for seed in range(30)
        for finding in of_properties(of_random(seed, each), THRESHOLDS, names)
    ]
    assert "fail" not in verdicts


def test_few_images_of_two_sizes_fail():
    table = of_random(0, 10).assign(width=np.repeat([64, 96], 10))
    (finding,) = of_properties(table, THRESHOLDS, ["width"])
    assert (finding.share, finding.verdict) == (pytest.approx(1), "fail")


def test_the_size_of_files_warns_alone():
    table = of_random(0, 40).assign(bytes=np.repeat([1000, 5000], 40) + np.arange(80))
    (finding,) = of_properties(table, THRESHOLDS, ["bytes"])
    assert finding.share > 0.9
    assert finding.verdict == "warn"


def test_of_several_attributors_the_worst_verdict_is_kept():
    found = [{"audit": {"verdict": verdict}} for verdict in ("pass", "fail", "warn")]
    assert worst([{}, *found]) == {"audit": {"verdict": "fail"}}
    assert worst([{}]) == {}


def artifacts_of(inputs, folder, most=300):
    recipe = ArtifactRecipe(plain=["residual"], audit_images=most)
    return compute_artifacts(inputs, str(folder), recipe, demand=HERE)


def trained(inputs, folder, audit=Settings(), recipe=ArtifactRecipe()):
    control = AttributorControl(HERE, audit=audit)
    return train_attributor(
        inputs, str(folder), TrainingRecipe(vectors="lda"), recipe=recipe, control=control
    )


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_artifacts_keep_the_sample_that_an_audit_of_their_images_reads(alike, tmp_path):
    manifest = artifacts_of(alike, tmp_path / "a", 10)
    kept = kept_sample(f"{tmp_path}/a", manifest["properties"])
    pd.testing.assert_frame_equal(kept, read(alike, 10))
    path = tmp_path / "a" / KEPT
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamageError):
        kept_sample(f"{tmp_path}/a", manifest["properties"])
    without = compute_artifacts(
        alike, f"{tmp_path}/b", ArtifactRecipe(plain=["residual"]), demand=HERE
    )
    assert "properties" not in without
    assert not (tmp_path / "b" / "properties").exists()


def test_a_training_on_artifacts_is_judged_by_their_sample(biased, tmp_path, capsys):
    artifacts_of(biased, tmp_path / "a")
    with pytest.raises(FailedAuditError, match="--input: the file property format reveals"):
        trained([f"{tmp_path}/a"], tmp_path / "t")
    assert not (tmp_path / "t").exists()
    manifest = trained([f"{tmp_path}/a"], tmp_path / "t", Settings(accept=True))
    assert (manifest["audit"]["verdict"], manifest["audit"]["note"]) == ("fail", TRAINED)
    assert "audit: fail: " in capsys.readouterr().err
    assert {"audit/audit.md", f"audit/{KEPT}"} <= set(files(tmp_path / "t"))
    # The verdict is the one before a training on the images.
    found = audit_before(biased, f"{tmp_path}/i", Settings(accept=True), demand=HERE)
    assert found == manifest["audit"]


def test_of_a_sample_some_images_and_classes_are_judged(biased, alike, tmp_path):
    png = f"png={alike[0].partition('=')[2]}"
    artifacts = artifacts_of([*biased, png], tmp_path / "a")

    def judged(classes, images=300):
        settings = Settings(images)
        return audit_artifacts(f"{tmp_path}/a", artifacts, classes, f"{tmp_path}/t", settings)

    assert judged(["gan", "png"])["images"] == 120
    assert judged(["gan", "png"], 7)["images"] == 14
    assert judged(["gan"]) is None
    assert judged(["gan", "png"], 0) is None
    with pytest.raises(FailedAuditError):
        judged(["gan", "real"])


def test_artifacts_without_a_sample_are_trained_on_which_a_line_says(biased, tmp_path, capsys):
    artifacts_of(biased, tmp_path / "a", 0)
    manifest = trained([f"{tmp_path}/a"], tmp_path / "t")
    assert "audit" not in manifest
    assert not (tmp_path / "t" / "audit").exists()
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("audit: ")]
    assert line.startswith(f"audit: not possible: {tmp_path}/a has no sample")
    trained([f"{tmp_path}/a"], tmp_path / "u", UNAUDITED)
    assert "audit: " not in capsys.readouterr().err


def test_artifacts_of_embeddings_keep_the_sample_of_these(alike, tmp_path, ray_session):
    build_manifold(alike[:1], f"{tmp_path}/m", space="residual")
    recipe = ArtifactRecipe([f"{tmp_path}/m"], projection=NONE, audit_images=5)
    given = compute_artifacts(alike, f"{tmp_path}/e", recipe)
    (branch,) = open_artifacts([f"{tmp_path}/e"])
    made = project_embeddings(branch, f"{tmp_path}/a", f"{tmp_path}/m")
    assert made["properties"] == given["properties"]
    assert kept_sample(f"{tmp_path}/a", made["properties"])["source"].nunique() == 2


def test_the_audit_of_a_finished_output_stays_unless_it_is_overwritten(alike, tmp_path):
    audit_before(alike, f"{tmp_path}/t", demand=HERE)
    with claims.claim(f"{tmp_path}/t", "attributor", "0" * 64) as claim:
        claim.publish({})
    before = (tmp_path / "t" / "audit" / "manifest.json").read_bytes()
    assert audit_before(alike, f"{tmp_path}/t", Settings(5), demand=HERE)["images"] == 10
    assert (tmp_path / "t" / "audit" / "manifest.json").read_bytes() == before
    audit_before(alike, f"{tmp_path}/t", Settings(5), demand=HERE, terms=claims.Terms(True))
    assert (tmp_path / "t" / "audit" / "manifest.json").read_bytes() != before


@pytest.fixture(scope="module")
def additions(tmp_path_factory):
    """A new source whose images are stored as those of ``alike``, and one whose images are JPEG."""
    root = tmp_path_factory.mktemp("additions")
    png = write_folder(root / "png", "blocks", range(60))
    return {
        "png": [f"new={png}"],
        "jpeg": [f"new={write_jpegs(root / 'jpg', 'blocks', range(60))}"],
    }


def judged_extension(model, given, output, settings=Settings()):
    units = plan(given, labelled=True, quiet=True)
    return audit_extension(str(model), given, units, str(output), settings, demand=HERE)


def test_images_that_extend_are_judged_beside_those_of_the_training(
    alike, additions, tmp_path, capsys
):
    audit_before(alike, f"{tmp_path}/t", demand=HERE)
    with pytest.raises(FailedAuditError) as error:
        judged_extension(tmp_path / "t", additions["jpeg"], tmp_path / "x")
    line = str(error.value)
    assert line.startswith("--add: the file property format reveals the class (earlier classes PNG")
    assert not (tmp_path / "x").exists()
    accepted = Settings(accept=True)
    found = judged_extension(tmp_path / "t", additions["jpeg"], tmp_path / "x", accepted)
    assert (found["verdict"], found["images"], found["note"]) == ("fail", 180, TRAINED)
    assert judged_extension(tmp_path / "t", additions["png"], tmp_path / "y")["verdict"] == "pass"
    # The sample is kept with that of the training: a further extension is judged beside both.
    assert judged_extension(tmp_path / "y", additions["png"], tmp_path / "z")["images"] == 240
    assert judged_extension(tmp_path / "t", additions["jpeg"], tmp_path / "w", UNAUDITED) is None
    capsys.readouterr()
    assert judged_extension(tmp_path / "none", additions["jpeg"], tmp_path / "w") is None
    assert capsys.readouterr().err.startswith("audit: not possible: ")
    assert not (tmp_path / "w").exists()


def test_one_new_source_among_many_is_found(additions, tmp_path):
    """By the label of all classes, a format of one class in twenty says too little to fail."""
    many = [f"{n}={write_folder(tmp_path / str(n), 'real', range(8))}" for n in range(20)]
    audit_before(many, f"{tmp_path}/t", demand=HERE)
    with pytest.raises(FailedAuditError):
        judged_extension(tmp_path / "t", additions["jpeg"], tmp_path / "x", Settings(8))


def test_an_extension_is_refused_or_says_that_it_was_accepted(alike, additions, tmp_path):
    recipe = ArtifactRecipe(plain=["residual"])
    trained(alike, tmp_path / "t", recipe=recipe)

    def extended(kind, audit=Settings()):
        output = f"{tmp_path}/{kind}"
        return extend_attributor(f"{tmp_path}/t", additions[kind], output, audit=audit, demand=HERE)

    with pytest.raises(FailedAuditError):
        extended("jpeg")
    assert not (tmp_path / "jpeg").exists()
    manifest = extended("jpeg", Settings(accept=True))
    assert (manifest["audit"]["verdict"], manifest["audit"]["note"]) == ("fail", TRAINED)
    assert extended("png")["audit"]["verdict"] == "pass"
    before = files(tmp_path / "png"), outputs.read(f"{tmp_path}/png")
    with pytest.raises(FailedAuditError):
        extend_attributor(
            f"{tmp_path}/t",
            additions["jpeg"],
            f"{tmp_path}/png",
            demand=HERE,
            terms=claims.Terms(overwrite=True),
        )
    assert (files(tmp_path / "png"), outputs.read(f"{tmp_path}/png")) == before
    text = model_card.card(model_card.Facts(manifest, [], None, included=False, commit="none"))
    assert TRAINED in text


@pytest.mark.slow
def test_the_jobs_judge_artifacts_and_extensions(ray_session, biased, alike, additions, tmp_path):
    compute = ["--space", "residual", "--output", f"{tmp_path}/a", "--input", *biased]
    assert compute_artifacts_job.main(compute) == 0
    flags = ["--input", f"{tmp_path}/a", "--output", f"{tmp_path}/t"]
    assert train_attribution.main(flags) == 3
    assert not (tmp_path / "t").exists()
    assert train_attribution.main([*flags, "--accept-biased"]) == 0
    assert outputs.read(f"{tmp_path}/t")["audit"]["note"] == TRAINED
    passed = ["--space", "residual", "--output", f"{tmp_path}/p", "--input", *alike]
    assert train_attribution.main(passed) == 0
    flags = [f"{tmp_path}/p", "--output", f"{tmp_path}/x", "--add", *additions["jpeg"]]
    assert extend.main(flags) == 3
    assert not (tmp_path / "x").exists()
    assert extend.main([*flags, "--accept-biased"]) == 0
    manifest = outputs.read(f"{tmp_path}/x")
    assert audit_of(None, FoundAttributor("x", manifest)).note == TRAINED


@pytest.mark.slow
def test_the_job_stops_and_trains_where_told_to_which_it_says(
    ray_session, biased, alike, tmp_path, capsys
):
    flags = ["--space", "residual", "--output", f"{tmp_path}/t", "--input"]
    assert train_attribution.main([*flags, *biased]) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("train_attribution: --input: the file property format reveals")
    assert not (tmp_path / "t" / "artifacts").exists()
    assert train_attribution.main([*flags, *biased, "--accept-biased"]) == 0
    manifest = outputs.read(f"{tmp_path}/t")
    assert manifest["audit"]["verdict"] == "fail"
    text = model_card.card(model_card.Facts(manifest, [], None, included=False, commit="none"))
    assert TRAINED in text
    assert audit_of(None, FoundAttributor("t", manifest)).note == TRAINED
    assert TRAINED in dict(model_parts("t", manifest)[0].facts)["audit of these"]
    passed = ["--space", "residual", "--output", f"{tmp_path}/p", "--input", *alike]
    assert train_attribution.main(passed) == 0
    manifest = outputs.read(f"{tmp_path}/p")
    assert manifest["audit"]["verdict"] == "pass"
    assert verdict_of(storage.read_json(f"{tmp_path}/p/audit/manifest.json")) == manifest["audit"]
