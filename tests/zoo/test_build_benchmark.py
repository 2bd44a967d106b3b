"""A benchmark made end to end by its job, and what it refuses."""

import csv
import json

import pytest
from conftest import BENCHMARK, write_folder
from PIL import Image

from manifpt.images import DecodeRule, plan, read_unit
from manifpt.jobs import build_benchmark
from manifpt.zoo.benchmark_card import files_off_card

COUNTS = ["--manifold-images", "60", "--train-images", "20", "--validation-images", "10"]
COUNTS += ["--test-images", "10"]


@pytest.fixture
def reals(tmp_path):
    return write_folder(tmp_path / "reals", "real", range(140))


def test_outside_images_join_and_an_untrained_generator_is_refused(ray_session, reals, tmp_path):
    other = write_folder(tmp_path / "other", "blocks", range(500, 550), size=24)
    for path in sorted(other.iterdir())[:5]:
        Image.open(path).save(path.with_suffix(".jpg"))
    recipes = tmp_path / "recipes.yaml"
    recipes.write_text("recipes:\n- {name: gan, model: gan, seed: 1, steps: 2, batch_size: 8}\n")
    out = tmp_path / "bench"
    flags = ["--real", str(reals), "--generated", f"other={other}", "--recipes", str(recipes)]
    flags += ["--weights", f"{tmp_path}/w", "--output", str(out), *COUNTS]
    assert build_benchmark.main(flags) == 0
    card = json.loads((out / "card.json").read_text())
    assert list(card["recipes"]) == ["other"]
    assert list(card["refused"]) == ["gan"]
    assert card["recipes"]["other"]["came_as"] == {"PNG 24 x 24": 50, "JPEG 24 x 24": 5}
    assert files_off_card(str(out)) == []
    rows = [
        row
        for unit in plan([str(out)])
        for table in read_unit(unit, DecodeRule(16))
        for row in table.select(["source", "split", "format", "pixel_sha256"]).to_pylist()
    ]
    assert len(rows) == len({row["pixel_sha256"] for row in rows}) == 100 + 40
    assert {row["format"] for row in rows} == {"PNG"}
    assert len([r for r in rows if (r["source"], r["split"]) == ("other", "train")]) == 20
    seeds = [
        {"accuracy": a, "accuracy_low": 0, "accuracy_high": 1, "chance": 0.5, "images": 9}
        for a in (0.25, 0.75)
    ]
    measured = {"settings": {"epochs": 1}, "metrics": {"rgb": seeds}}
    (tmp_path / "found.json").write_text(json.dumps(measured))
    added = ["--output", str(out), "--accuracies", f"{tmp_path}/found.json"]
    assert build_benchmark.main(added) == 0
    assert "| rgb | 0.500 | 0.250 | 0.750 | 0.500 |" in (out / "README.md").read_text()
    (out / "other" / "test.tar.gz").write_bytes(b"changed")
    assert files_off_card(str(out)) == ["other/test.tar.gz"]


def test_a_benchmark_of_refused_generators_is_an_error(ray_session, reals, tmp_path, capsys):
    recipes = tmp_path / "recipes.yaml"
    recipes.write_text("recipes:\n- {name: vae, model: vae, seed: 1, steps: 1, batch_size: 8}\n")
    flags = ["--real", str(reals), "--recipes", str(recipes), "--weights", f"{tmp_path}/w"]
    assert build_benchmark.main([*flags, "--output", f"{tmp_path}/bench", *COUNTS]) == 2
    assert "no generator passes the gate" in capsys.readouterr().err
    assert not (tmp_path / "bench" / "card.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_generators_in_minutes(ray_session, tmp_path):
    reals = str(BENCHMARK / "real" / "manifold.tar.gz")
    flags = ["--real", reals, "--recipes", "tiny", "--weights", f"{tmp_path}/w"]
    assert build_benchmark.main([*flags, "--output", f"{tmp_path}/b", *COUNTS]) == 0
    card = json.loads((tmp_path / "b" / "card.json").read_text())
    assert set(card["recipes"]) == {"gan", "vae"}
    with (tmp_path / "b" / "recipes.csv").open() as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    assert table["gan"]["upsampling"] == "transposed"
    assert table["vae"]["family"] == "VAE"
