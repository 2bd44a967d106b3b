"""A training looks at the files of its images first, and stops where these reveal the classes."""

import io
import tarfile

import numpy as np
import pandas as pd
import pytest
from conftest import draw, png, write_folder, write_tar
from PIL import Image

from manifpt import outputs, storage
from manifpt.audit import sample
from manifpt.audit.property_report import of_properties
from manifpt.audit.sample import READ, merged, rank, sampled_properties
from manifpt.audit.training_audit import (
    THRESHOLDS,
    TRAINED,
    Settings,
    audit_before,
    verdict_of,
    worst,
)
from manifpt.engine.pools import HERE
from manifpt.errors import FailedAuditError
from manifpt.images import Selection, plan
from manifpt.images.read import unit_to_json
from manifpt.jobs import train_attribution
from manifpt.registry import model_card
from manifpt.report.page_provenance import FoundAttributor, audit_of, model_parts

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
    found = audit_before(biased, f"{tmp_path}/t", Settings(accept=True), demand=HERE)
    assert (found["verdict"], found["images"], found["note"]) == ("fail", 120, TRAINED)
    assert capsys.readouterr().err.startswith("audit: fail: ")


def test_images_stored_alike_pass_and_are_not_read_again(alike, tmp_path, capsys, monkeypatch):
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
