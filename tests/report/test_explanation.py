"""Why an image has its verdict, beside attributions of the same image."""

import io
import json

import handmade
import numpy as np
import pytest
from conftest import draw, png, write_tar
from PIL import Image

from manifpt.images.degrade import blur
from manifpt.jobs import explain
from manifpt.report.explanation import Explainer, changes, explanation, opened_image
from manifpt.report.explanation_page import explanation_text


@pytest.fixture(scope="module")
def explainer(tmp_path_factory):
    return Explainer.open(handmade.attributor(tmp_path_factory.mktemp("explained") / "model"))


def saved(path, pixels):
    Image.fromarray(pixels).save(path)
    return str(path)


def test_a_degraded_verdict_is_that_of_the_degraded_image(explainer, tmp_path):
    image = draw("stripes", 3)
    plain = saved(tmp_path / "plain.png", image)
    found = explanation(explainer, opened_image(plain, explainer), ["blur:1"])
    other = saved(tmp_path / "blurred.png", blur(image, 1))
    blurred = explanation(explainer, opened_image(other, explainer), [])
    clean, level = found["degraded"]
    assert clean["same"]
    assert clean["probability"] == pytest.approx(found["probability"])
    assert level["prediction"] == blurred["prediction"]
    assert level["probability"] == pytest.approx(blurred["probability"], rel=1e-5)
    assert found["unknown"] is None
    assert found["nearest_reals"] == {}


def test_one_head_says_what_the_attributor_says(explainer, tmp_path):
    uri = saved(tmp_path / "image.png", draw("blocks", 1))
    found = explanation(explainer, opened_image(uri, explainer), [])
    (vote,) = found["votes"]
    for said, answer in zip(vote["answers"], found["top_k"], strict=True):
        assert said["source"] == answer["source"]
        assert said["probability"] == pytest.approx(answer["probability"])


def test_a_member_of_a_tar_is_explained_as_the_file(explainer, tmp_path):
    data = png("blocks", 5)
    (tmp_path / "file.png").write_bytes(data)
    write_tar(tmp_path / "a.tar", [("x/0.png", png("real", 1)), ("x/1.png", data)])
    rows = [
        explainer.verdicts(opened_image(uri, explainer))[0]
        for uri in (f"{tmp_path}/file.png", f"{tmp_path}/a.tar#x/1.png")
    ]
    assert rows[0]["pixel_sha256"] == rows[1]["pixel_sha256"]
    assert rows[0]["probability"] == rows[1]["probability"]


def test_the_first_level_of_each_kind_that_changes_the_verdict():
    levels = [("identity", True), ("jpeg:95", True), ("jpeg:75", False), ("jpeg:50", False)]
    levels += [("blur:1", True), ("noise:0.1", False)]
    rows = [{"degradation": name, "same": same} for name, same in levels]
    assert changes(rows) == ["jpeg:75", "noise:0.1"]


def test_the_job_prints_and_draws(explainer, tmp_path, capsys):
    name = tmp_path / "<b onclick=x>.png"
    sink = io.BytesIO()
    Image.fromarray(np.asarray(draw("real", 2))).save(sink, "PNG")
    name.write_bytes(sink.getvalue())
    page, summary = tmp_path / "why.html", tmp_path / "why.json"
    flags = [str(name), "--model", explainer.attributor.uri, "--levels", "jpeg:50"]
    assert explain.main([*flags, "--output", str(page), "--json", str(summary)]) == 0
    found = json.loads(summary.read_text())
    assert explanation_text(found) in capsys.readouterr().err
    text = page.read_text()
    assert "<b onclick" not in text
    for section in ("image", "votes", "degradations", "provenance"):
        assert f'id="{section}"' in text


def test_what_is_no_image_is_one_line(explainer, tmp_path, capsys):
    (tmp_path / "no.png").write_bytes(b"no image")
    for name, said in (("no.png", "unknown_format"), ("gone.png", "check the path")):
        flags = [f"{tmp_path}/{name}", "--model", explainer.attributor.uri]
        assert explain.main(flags) == 2
        assert said in capsys.readouterr().err
