"""No job touches a file that no job has written: in any folder, whatever the job's end."""

import shutil
from pathlib import Path

import pytest
from conftest import BENCHMARK, labelled, write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifpt.jobs import (
    attribute,
    audit,
    build_benchmark,
    build_manifold,
    compare_open_set,
    compare_spaces,
    compute_artifacts,
    evaluate,
    extend,
    fuse,
    normalize,
    pretrain_embedding,
    quickstart,
    train_attribution,
)
from manifpt.tuning import sweep

SMALL = ["--backbone", "resnet18", "--stem", "half", "--epochs", "1", "--batch-size", "8"]
# Each job with inputs that it can use, and, with none, what makes it fail after it has begun.
JOBS = {
    "build_manifold": (
        build_manifold,
        ["--input", "real={reals}"],
        ["--input", "real={broken}", "--tiles", "0", "--image-size", "16"],
    ),
    "compute_artifacts": (
        compute_artifacts,
        ["--input", "real={reals}", "--manifold", "{chain}/m"],
        ["--input", "real={broken}", "--manifold", "{chain}/m"],
    ),
    "audit": (audit, ["--input", "real={reals}"], ["--input", "real={broken}"]),
    "normalize": (normalize, ["--input", "real={reals}"], ["--input", "real={broken}"]),
    "attribute": (
        attribute,
        ["--input", "{reals}", "--model", "{chain}/t"],
        ["--input", "{empty}", "--model", "{chain}/t"],
    ),
    "evaluate": (
        evaluate,
        ["--input", "{chain}/a", "--model", "{chain}/t"],
        ["--input", "real={broken}", "--model", "{chain}/t"],
    ),
    "evaluate --robustness": (
        evaluate,
        ["--input", "real={reals}", "--model", "{chain}/t", "--robustness", "--levels", "jpeg:50"],
        ["--input", "real={broken}", "--model", "{chain}/t", "--robustness", "--levels", "jpeg:50"],
    ),
    "train_attribution": (
        train_attribution,
        ["--input", "{chain}/a", *SMALL],
        ["--input", "real={broken}", "--manifold", "{chain}/m", *SMALL],
    ),
    "extend": (
        extend,
        ["{chain}/t", "--add", "new={reals}"],
        ["{chain}/t", "--add", "new={broken}"],
    ),
    "fuse": (
        fuse,
        ["{chain}/t", "{chain}/t"],
        ["{chain}/m", "{chain}/m"],
    ),
    "pretrain_embedding": (
        pretrain_embedding,
        ["--input", "real={reals}", *SMALL],
        ["--input", "real={broken}", *SMALL],
    ),
    "build_benchmark": (
        build_benchmark,
        ["--real", "{reals}", "--recipes", "tiny"],
        ["--real", "{broken}", "--recipes", "tiny"],
    ),
    "quickstart": (quickstart, ["--benchmark", "{benchmark}"], ["--benchmark", "{broken}"]),
    "compare_spaces": (compare_spaces, ["--benchmark", "{benchmark}"], ["--benchmark", "{broken}"]),
    "compare_open_set": (
        compare_open_set,
        ["--benchmark", "{benchmark}"],
        ["--benchmark", "{broken}"],
    ),
    "sweep": (
        sweep,
        ["--config", "tuning/quick.yaml", "--input", "{benchmark}"],
        ["--config", "tuning/quick.yaml", "--input", "{broken}"],
    ),
}
NAMES = """
thesis.txt .hidden a.partial manifest.json _plan.json _alive.json .lock card.json _records/notes
_records/000000-000000.json _work/index.json attributions/000000-000000.parquet quarantine/mine
train/000000-000000.parquet artifacts/a.png model/a shard-00000/vectors.npy weights.pt seen.parquet
_training/mine _epochs/00000.json metrics.json confusion.png summary.json real/train.tar.gz rgb/x
_cost.json
""".split()
STRANGERS = st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=4), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def places(chain, corpus, tmp_path_factory) -> dict[str, str]:
    """Inputs by name: usable, all broken, and none at all."""
    root = tmp_path_factory.mktemp("inputs")
    write_folder(root / "reals", "real", range(3000, 3040))
    for name in ("broken", "empty"):
        (root / name).mkdir()
    for number in range(3):
        (root / "broken" / f"{number}.png").write_bytes(b"no image")
    fixed = {"chain": str(chain), "benchmark": str(BENCHMARK)}
    return fixed | {n: str(root / n) for n in ("reals", "broken", "empty")}


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def write(root: Path, strangers: dict[str, bytes]) -> None:
    for name, data in strangers.items():
        path = root / name
        if not path.exists() and not any(above.is_file() for above in path.parents):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def run(name: str, which: int, places: dict[str, str], output: Path, *more: str) -> int:
    job, *flags = JOBS[name]
    given = [flag.format(**places) for flag in flags[which]]
    code: int = job.main([*given, "--output", str(output), *more])
    return code


@pytest.mark.parametrize("name", JOBS)
@settings(
    max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(strangers=STRANGERS, which=st.integers(0, 1), terms=st.booleans())
def test_a_folder_of_others_is_refused_before_any_work(
    places, tmp_path_factory, capsys, name, strangers, which, terms
):
    around = tmp_path_factory.mktemp("around")
    write(around, {"beside.txt": b"x"})
    write(around / "out", strangers)
    before = contents(around)
    more = ["--overwrite", "--take-over"] if terms else []
    assert run(name, which, places, around / "out", *more) == 2
    assert contents(around) == before


# An output of each job, to which strangers add files, and which a failing job then overwrites.
@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("build_manifold", "m"),
        ("compute_artifacts", "a"),
        ("evaluate --robustness", "e"),
        ("extend", "t"),
        ("attribute", "m"),
    ],
)
@settings(
    max_examples=1, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(strangers=STRANGERS)
def test_what_others_put_into_an_output_outlives_it(
    places, chain, tmp_path_factory, name, made, strangers
):
    around = tmp_path_factory.mktemp("around")
    shutil.copytree(chain / made, around / "out")
    ours = contents(around)
    write(around / "out", strangers)
    theirs = {path: data for path, data in contents(around).items() if path not in ours}
    assert run(name, 1, places, around / "out", "--overwrite") == 2
    after = contents(around)
    assert {path: after.get(path) for path in theirs} == theirs
    assert not set(after) & {path for path in ours if path.suffix in {".npy", ".parquet"}}


def test_an_input_is_never_an_output(places, corpus, tmp_path, capsys):
    shutil.copytree(places["reals"], tmp_path / "reals")
    before = contents(tmp_path)
    flags = ["--model", places["chain"] + "/t", "--overwrite"]
    for given_, output in (
        (f"{tmp_path}/reals/*.png", f"{tmp_path}/reals"),
        (f"{tmp_path}/reals", f"{tmp_path}/reals/out"),
        (f"{tmp_path}/reals", str(tmp_path)),
        (f"{tmp_path}/**/*.png", f"{tmp_path}/out"),
    ):
        assert attribute.main(["--input", given_, "--output", output, *flags]) == 2
        assert "is, holds or lies in --input" in capsys.readouterr().err
    target = ["--manifold", places["chain"] + "/m", "--output", places["chain"] + "/m/a"]
    assert compute_artifacts.main(["--input", *labelled(corpus), *target]) == 2
    assert "lies in --manifold" in capsys.readouterr().err
    assert contents(tmp_path) == before
