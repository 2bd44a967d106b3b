"""The paper's experiments: the rows and how they are counted, and a small run of all sections."""

import json

import numpy as np
import pytest

from manifpt.artifacts import branches
from manifpt.errors import ManifptError
from manifpt.evaluation import conditions
from manifpt.jobs import reproduce
from manifpt.jobs.reproduction.harder_conditions import content, few
from manifpt.jobs.reproduction.methods import (
    PAIRS,
    PUBLISHED,
    TOGETHER,
    ArtifactPlace,
    chosen,
    methods,
)
from manifpt.jobs.reproduction.section import accuracy_of, markdown_table, spread
from manifpt.jobs.reproduction.transfer import has_manifold

ROWS = methods(("--backbone", "resnet18"), ("sl",))
BY_TITLE = {row.title: row for row in ROWS}


def test_the_eight_methods_that_the_paper_compares_with_are_rows():
    titles = [row.title for row in ROWS if row.group == PUBLISHED]
    names = "McCloskey18 Nataraj19 Durall20 Dzanic20 Wang20 Marra18 Marra19 Yu19"
    assert titles == [*names.split(), "DNA-Det"]


def test_rows_that_are_compared_have_the_same_number_of_networks():
    for ours, control in PAIRS:
        assert BY_TITLE[ours].networks == BY_TITLE[control].networks
        assert has_manifold(BY_TITLE[ours])
        assert not has_manifold(BY_TITLE[control])


def test_names_of_folders_are_unique_and_plain():
    names = [row.name for row in ROWS]
    assert len({*names}) == len(names)
    assert BY_TITLE["image + image@1"].name == "image+image@1"
    assert BY_TITLE["rgb, tangent plane"].name == "rgb-tangent-plane"


def test_a_fusion_reads_each_place_once_and_needs_no_seed_if_no_member_does():
    four = BY_TITLE["image + high-pass + residual statistics + image@1"]
    assert four.places == [ArtifactPlace("plain", "image"), ArtifactPlace("plain", "residual")]
    assert four.networks == 3
    assert not any(row.closed for row in ROWS if row.group == TOGETHER)


def test_unknown_rows_are_named():
    with pytest.raises(ValueError, match="Durall21: no such row; choose from McCloskey18"):
        chosen(ROWS, ["Durall21"])
    assert [row.title for row in chosen(ROWS, ["NPR", "image"])] == ["NPR", "image"]


def test_tables_are_markdown():
    one = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6}
    assert accuracy_of([one]) == "0.500 (0.400-0.600)"
    assert accuracy_of([one, one | {"accuracy": 0.7}]) == spread([0.5, 0.7])
    assert markdown_table(["a"], [["1"]]).splitlines() == ["| a |", "|---|", "| 1 |"]


def test_quick_is_a_default_that_other_options_change():
    config = reproduce.Config(output="x", quick=True, steps=7)
    assert (config.steps, config.denoiser_steps, config.sources) == (7, 100, ())
    assert config.benchmark.endswith("gm-mnist")
    assert reproduce.Config(output="x").steps == 2000


def test_two_benchmarks_need_sources_in_common(tmp_path):
    (tmp_path / "recipes.csv").write_text("name,seed\nother,1\n")
    with pytest.raises(ManifptError, match="has no recipe"):
        reproduce.shared_sources(reproduce.Config(output="x", other=str(tmp_path)))
    config = reproduce.Config(output="x", other="benchmarks/gm-mnist")
    assert {"real", "gan", "vaegan"} <= {*reproduce.shared_sources(config)}


class FakeStudy:
    """A study whose artifacts are vectors that are drawn; the name of the space decides how."""

    config = reproduce.Config(output="x", sources=("real", "a", "b"))

    def artifacts_in(self, place):
        return place.space


def drawn(space, classes):
    """Rows of three classes, in three folds of content; ``durall20`` sees the content alone."""

    def rows(count, seed):
        rng = np.random.default_rng(seed)
        numbers, contents = np.arange(count) % 3, np.arange(count) // 3 % 3
        vectors = rng.normal(0, 0.1, (count, 49)).astype(np.float32)
        vectors[np.arange(count), (contents if space in ("image", "durall20") else numbers)] += 1
        ids = np.array([f"{seed}-{n:04d}" for n in range(count)])
        return conditions.Rows(vectors, numbers, ids)

    return conditions.SplitRows(rows(180, 0), rows(90, 1), rows(90, 2))


def test_few_images_and_other_content_compare_a_row_that_is_fixed_before(monkeypatch):
    monkeypatch.setattr(conditions, "split_rows", drawn)
    shape = type("Branch", (), {"manifest": {"shape": [1, 7, 7]}})
    monkeypatch.setattr(branches, "open_artifacts", lambda _: [shape])
    rows = chosen(ROWS, ["Durall20", "residual statistics", "residual, tangent plane"])
    found = few(FakeStudy(), rows).numbers
    assert found["residual statistics"]["10"] == pytest.approx([1.0] * 3, abs=0.05)
    assert found["Durall20"]["all"][0] < 0.6
    shifted = content(FakeStudy(), rows)
    assert shifted.numbers["residual statistics"]["other"] > 0.9
    assert {*shifted.numbers["paired"]} == {"residual, tangent plane instead of Durall20"}
    assert "p, Holm" in shifted.text


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_all_sections_of_some_rows(ray_session, tmp_path):
    flags = ["--quick", "--output", f"{tmp_path}/r", "--other", "benchmarks/gm-fashionmnist"]
    rows = ["Durall20", "residual statistics", "residual, tangent plane"]
    assert reproduce.main([*flags, "--methods", *rows]) == 0
    files = (tmp_path / "r" / "sections").iterdir()
    found = {file.stem: json.loads(file.read_text())["numbers"] for file in files}
    methods_found = found["table2"]["methods"]
    chance = 1 / 13
    assert all(m["accuracy"][0] > 2 * chance and m["fdr"][0] > 1 for m in methods_found.values())
    assert found["table2"]["file_properties"]["p_value"] > 0.05
    best = methods_found["residual statistics"]
    assert best["accuracy"][0] > methods_found["Durall20"]["accuracy"][0]
    assert all(0 < v <= 1 for v in found["reals"]["tangent"].values())
    effects = found["table5"]["effects"]["rgb, nearest"]
    assert effects["upsampling"]["pairs"] > effects["upsampling"]["seed_pairs"] > 0
    assert {*found["theory"]["correlations"]} >= {"precision", "squared_mmd"}
    crossed = found["table4"]["residual, tangent plane"]["gm-mnist to gm-fashionmnist"]
    assert {*crossed} == {"same data set", "target reals", "source reals"}
    few = found["few"]["residual statistics"]
    assert few["10"][0] < few["all"][0]
    assert all(0 < v < 1 for v in found["content"]["residual statistics"].values())
    page = (tmp_path / "r" / "reproduction.md").read_text()
    assert "## Fingerprints and design choices" in page
