"""A data set whose files give the label away fails, and passes once it is stored alike."""

import json
import shutil
import time

import numpy as np
import pandas as pd
import pytest
from conftest import draw
from PIL import Image

from manifpt import storage
from manifpt.audit.audit import (
    FOLDER,
    REPORT,
    TEXT,
    AuditSettings,
    PropertiesStage,
    RowSample,
    examine,
    read_properties,
    sampled,
)
from manifpt.audit.normalize import EncodingStage, ImageEncoder, file_name, folder_name
from manifpt.audit.property_report import CLASSIFIER, LIMITS, SPLITS, markdown
from manifpt.audit.verdict import Thresholds, judged, overall
from manifpt.engine import chunk_work, pipeline
from manifpt.images import DecodeRule, Reading, plan, read_unit
from manifpt.images.read import unit_to_json
from manifpt.jobs import audit, normalize

COUNT = 40
RULE = DecodeRule(16)


def picture(number):
    """A picture with more or less noise, so that the sizes of files of all kinds overlap."""
    rng = np.random.default_rng(number)
    noise = rng.normal(0, rng.uniform(2, 60), (16, 16, 3))
    return Image.fromarray(np.clip(draw("real", number) + noise, 0, 255).astype(np.uint8))


def save(folder, numbers, ending="png", **options):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        picture(number).save(folder / f"{number:04d}.{ending}", **options)


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """Pictures of one kind, of which one class was stored as JPEG, the other as PNG."""
    root = tmp_path_factory.mktemp("biased")
    save(root / "real", range(COUNT), "jpg", quality=75)
    save(root / "fake", range(COUNT, 2 * COUNT))
    return root


def worked(stage, tables, output):
    """Do what the pipeline does with the chunks of some units; return the records."""
    place = chunk_work.Place(str(output), time.time())
    return [
        chunk_work.work(
            stage,
            {"unit": 0, "chunk": n, "last": True, "table": storage.encode_table(table)},
            place,
        )
        for n, table in enumerate(tables)
    ]


def audited(inputs, output, split_by=None):
    columns = (split_by,) if split_by else ()
    units = plan(inputs, labelled=True, reading=Reading(columns=columns))
    tables = [table for u in units for table in read_properties(unit_to_json(u), RULE)]
    records = worked(PropertiesStage(split_by), tables, output)
    classes = {}
    for record in records:
        for name, count in record["facts"]["classes"].items():
            classes[name] = classes.get(name, 0) + count
    paths = [part["path"] for part in pipeline.parts(records) if part["folder"] == FOLDER]
    return examine(str(output), paths, classes, AuditSettings(split_by=split_by))


def normalized(inputs, output, encoder=ImageEncoder()):
    tables = [table for unit in plan(inputs, labelled=True) for table in read_unit(unit, RULE)]
    return worked(EncodingStage(encoder), tables, output)


def verdicts(report):
    return {finding["name"]: finding["verdict"] for finding in report["findings"]}


def test_biased_files_fail_and_pass_once_stored_alike(biased, tmp_path):
    report = audited([str(biased)], tmp_path / "before")
    found = verdicts(report)
    assert report["verdict"] == "fail"
    failed = {"format", "quality", "tables", "subsampling", "encoder", CLASSIFIER}
    assert {name for name in failed if found[name] == "fail"} == failed
    assert {found[name] for name in ("width", "mode", "bits", "exif", "icc", "c2pa")} == {"pass"}
    shares = {finding["name"]: finding["share"] for finding in report["findings"]}
    assert shares["format"] == pytest.approx(1)
    for n, encoder in enumerate((ImageEncoder(), ImageEncoder(jpeg=90))):
        normalized([str(biased)], tmp_path / f"alike{n}", encoder)
        after = audited([f"{tmp_path}/alike{n}/images"], tmp_path / f"after{n}")
        assert after["verdict"] == "pass", verdicts(after)
        assert after["classes"]["real"]["images"] == after["classes"]["fake"]["images"] == COUNT


def test_normalized_images_keep_pixels_names_sources_and_splits(tmp_path):
    save(tmp_path / "in" / "real" / "a.b", range(3))
    save(tmp_path / "in" / "fake", range(3, 6))
    records = normalized([f"{tmp_path}/in"], tmp_path / "out")
    files = pipeline.parts(records)
    assert {file["folder"] for file in files} == {"images/real", "images/fake"}
    assert sum(file["rows"] for file in files) == 6
    units = plan([f"{tmp_path}/out/images"], labelled=True)
    rows = [row for unit in units for table in read_unit(unit, RULE) for row in table.to_pylist()]
    before = plan([f"{tmp_path}/in"], labelled=True)
    old = [row for unit in before for table in read_unit(unit, RULE) for row in table.to_pylist()]
    assert {(r["source"], r["pixel_sha256"]) for r in rows} == {
        (r["source"], r["pixel_sha256"]) for r in old
    }
    assert {r["uri"].split("#")[1] for r in rows if r["source"] == "real"} == {
        f"a.b/{n:04d}.png" for n in range(3)
    }
    # Read without labels, the JSON beside each image says what it is.
    unnamed = plan([f"{tmp_path}/out/images/fake"])
    assert {r["source"] for u in unnamed for t in read_unit(u, RULE) for r in t.to_pylist()} == {
        "fake"
    }


def test_names_are_kept_as_far_as_samples_allow():
    assert file_name("real/x/0001.jpeg", "real") == "x/0001"
    assert file_name("real/a.b.c.png", "real") == "a_b_c"
    assert file_name("tar/key", "real") == "tar/key"
    assert file_name("real/.png", "real") == "_png"
    assert folder_name("a/b") == "a%2Fb"
    assert not folder_name("..").startswith(".")


def test_copies_and_prompts_in_other_splits_fail(biased, tmp_path):
    rows = []
    for number in range(2 * COUNT):
        source = "real" if number % 2 else "fake"
        path = tmp_path / f"{number}.png"
        # The first four pictures are in both classes.
        Image.fromarray(draw("real", number // 2 if number < 8 else number)).save(path)
        split = "train" if number % 4 < 2 else "test"
        rows.append(
            {"url": str(path), "source": source, "split": split, "prompt": f"p{number % 7}"}
        )
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = audited([f"{tmp_path}/t.jsonl"], tmp_path / "out", "prompt")
    found = verdicts(report)
    assert found["exact, across classes"] == "fail"
    assert found["exact, across splits"] == "pass"
    assert found[SPLITS] == "fail"
    facts = next(f["facts"] for f in report["findings"] if f["name"] == SPLITS)
    assert (facts["values"], facts["of"], facts["column"]) == (7, 7, "prompt")
    assert "Declare splits" in markdown(report)


def test_a_sample_depends_on_no_order():
    rng = np.random.default_rng(0)
    names = [str(n) for n in range(500)]
    rows = pd.DataFrame({"id": names, "pixel_sha256": rng.permutation(names), "source": "a"})
    found = []
    for seed in range(3):
        sample, mixed = RowSample(50), rows.sample(frac=1, random_state=seed)
        for start in range(0, 500, 70):
            sample.add(mixed[start : start + 70])
        found.append(sample.kept["id"].tolist())
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 50
    rows["source"] = ["a"] * 490 + ["b"] * 10
    some, compared = sampled([rows[:200], rows[200:]], 300, ["a", "b"])
    assert some["source"].value_counts().to_dict() == {"a": 150, "b": 10}
    assert len(compared) == 500


def test_the_report_names_what_it_does_not_show_and_runs_no_html(biased, tmp_path):
    report = audited([str(biased)], tmp_path)
    report["classes"]["real"]["software"] = {"<script>|x": 1.0}
    text = markdown(report)
    assert "**Membership.**" in text
    assert LIMITS.strip() in text
    assert "<script>" not in text
    assert text.startswith("# Audit: fail")


def test_the_worst_verdict_decides():
    few = Thresholds(warn=0.2, fail=0.4)
    found = [judged(str(share), "file", share, few) for share in (0.1, 0.2, 0.4)]
    assert [finding.verdict for finding in found] == ["pass", "warn", "fail"]
    assert overall(found[:2]) == "warn"
    assert overall(found) == "fail"
    assert overall([]) == "pass"


@pytest.mark.slow
def test_the_jobs_fail_with_their_own_code_and_pass_afterwards(ray_session, biased, tmp_path):
    shutil.copytree(biased, tmp_path / "in")
    (tmp_path / "in" / "real" / "broken.jpg").write_bytes(b"no image")
    flags = ["--input", f"{tmp_path}/in", "--json", f"{tmp_path}/found.json"]
    assert audit.main([*flags, "--output", f"{tmp_path}/a"]) == 3
    assert audit.main([*flags, "--output", f"{tmp_path}/a"]) == 3  # finished: nothing is read
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["verdict"], found["ok"], found["quarantined"]) == ("fail", 2 * COUNT, 1)
    assert json.loads((tmp_path / "a" / REPORT).read_text())["verdict"] == "fail"
    assert (tmp_path / "a" / TEXT).read_text().startswith("# Audit: fail")
    alike = ["--input", f"{tmp_path}/in", "--output", f"{tmp_path}/n"]
    assert normalize.main(alike) == 0
    assert audit.main(["--input", f"{tmp_path}/n/images"]) == 0
    one = ["--input", f"real={tmp_path}/in/real", "--output", f"{tmp_path}/b"]
    assert audit.main(one) == 2
    assert not (tmp_path / "b").exists()
