"""Plans of jobs: sums, limits and placements from measurements; dry runs that write nothing."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifpt.engine import pools, scaling, session
from manifpt.errors import ManifptError
from manifpt.images import Selection
from manifpt.jobs import (
    attribute,
    build_manifold,
    compute_artifacts,
    evaluate,
    plan,
    train_attribution,
)
from manifpt.manifold.placement import SHARE, place
from manifpt.manifold.search import SearchPlan
from manifpt.manifold.stored import StoredManifold
from manifpt.planning import model, table
from manifpt.planning.cluster import Cluster, Prices
from manifpt.planning.dry import _images
from manifpt.planning.measure import CommandRun
from manifpt.planning.measured import Fixed, ImageSeconds, Measurements, RealSeconds, Serial, Sizes
from manifpt.planning.plan_calibration import fitted, space_flags
from tests.conftest import labelled, png, write_folder, write_tar

GIB = 2**30
MEASURED = Measurements(
    machine={},
    cores=4,
    memory=8 * GIB,
    uses_gpu=False,
    exact=True,
    sizes=Sizes(image=2000, attribution=300, real=9408, real_stored=9408, unit=1000, chunk=1024),
    images=ImageSeconds(
        fetch=1e-4,
        decode=3e-4,
        table=1e-4,
        embed=1e-4,
        search=4e-4,
        search_floor=1e-4,
        reals=4000,
        classify=2e-3,
        write=1e-5,
        threads=0.5,
    ),
    fixed=Fixed(start=12, actor=6, reader=2, end=7, build_end=15, contention=1.5),
    serial=Serial(
        chunk=0.004,
        ids=1e-6,
        check=0.002,
        copies=1e-5,
    ),
    reals=RealSeconds(gather=1e-4, calibrate=1e-3, sample=28_000, held_out=2e-4),
)
NODE = Cluster(1, 16, 16, 0, 8 * GIB)


def changed(part: str, **values: object) -> Measurements:
    section = getattr(MEASURED, part)
    return MEASURED.model_copy(update={part: section.model_copy(update=values)})


def test_a_plan_is_the_sum_of_its_parts():
    made = model.plan_attribute(MEASURED, 100_000, 4000, NODE, 4)
    assert made.seconds == pytest.approx(sum(made.parts.values()))
    assert made.parts["images"] == max(made.limits.values())
    cpu = {stage.name: stage.cpu for stage in made.stages}
    assert cpu["classify"] == pytest.approx(100_000 * 2e-3 * 1.5)
    assert cpu["decode"] == pytest.approx(100_000 * 3e-4 * 1.5)
    assert cpu["ids"] == pytest.approx(0.1)
    written = {stage.name: stage.written for stage in made.stages}
    assert written["write"] == 100_000 * 300
    # 100 files of 1,000 images, each a chunk
    assert made.writes == 100 * model.CHUNK_WRITES
    row = table.plan_row(made, NODE, Prices())
    assert row["cpu_hours"] == pytest.approx(sum(cpu.values()) / 3600)
    assert json.loads(json.dumps(row)) == row


@pytest.mark.parametrize("workers", [1, 3, 15])
def test_more_images_or_reals_take_longer(workers):
    sizes = [100, 1000, 10_000, 10**6, 10**9]
    seconds = [model.plan_attribute(MEASURED, n, 4000, NODE, workers).seconds for n in sizes]
    assert seconds == sorted(set(seconds))
    reals = [1000, 10_000, 100_000]
    searched = [model.plan_attribute(MEASURED, 10**6, n, NODE, workers).seconds for n in reals]
    assert searched == sorted(searched)
    built = [model.plan_build_manifold(MEASURED, n, NODE, workers).seconds for n in sizes]
    assert built == sorted(set(built))


def test_more_workers_help_until_something_else_limits():
    plans = [model.plan_attribute(MEASURED, 10**6, 4000, NODE, n) for n in (1, 2, 4, 8)]
    images = [made.parts["images"] for made in plans]
    assert images == sorted(images, reverse=True)
    assert plans[0].bottleneck == "actors"
    alone = model.plan_attribute(MEASURED, 10**6, 4000, Cluster(1, 16, 2, 0, 8 * GIB), 8)
    assert alone.bottleneck == "cores"
    assert alone.parts["start"] > plans[3].parts["start"]
    slow = model.plan_attribute(changed("serial", chunk=9.0), 10**6, 4000, NODE, 8)
    assert slow.bottleneck == "driver"
    far = model.plan_attribute(MEASURED, 10**6, 4000, Cluster(1, 16, 16, 0, 8 * GIB, 1e5), 8)
    assert far.bottleneck == "storage"
    many = model.plan_attribute(MEASURED, 10**9, 4000, Cluster(1000, 16, 16, 0, 8 * GIB), 8000)
    assert many.bottleneck == "driver"
    assert many.parts["copies"] == pytest.approx(10**9 * 1e-5 / 16_000)


def test_one_file_is_read_by_one_reader():
    one = model.plan_attribute(changed("sizes", unit=10**6), 10**6, 4000, NODE, 8)
    assert one.bottleneck == "readers"
    assert one.limits["readers"] == pytest.approx(10**6 * 3e-4 * 1.5)


def test_a_gpu_has_the_hours_of_networks_and_search():
    measured = MEASURED.model_copy(update={"uses_gpu": True})
    made = model.plan_attribute(measured, 10**6, 4000, Cluster(2, 16, 16, 1, 8 * GIB))
    gpu = {stage.name for stage in made.stages if stage.gpu}
    assert made.workers == 2
    assert gpu == {"embed", "search", "classify"}
    assert not any(stage.cpu and stage.gpu for stage in made.stages)


@pytest.mark.parametrize("gpus", [0, 1, 3])
@pytest.mark.parametrize("cpus", [1, 2, 5, 64])
def test_pools_are_those_of_jobs(monkeypatch, cpus, gpus):
    monkeypatch.setattr(pools, "capacity", lambda: {"CPU": float(cpus), "GPU": float(gpus)})
    cluster = Cluster(1, cpus, cpus, gpus, GIB)
    for uses_gpu in (False, True):
        real = pools.pool(pools.ANY, uses_gpu=uses_gpu)
        assert cluster.pool(None, uses_gpu=uses_gpu) == real
        if real.size > 1:
            real = pools.pool(pools.Demand(real.size - 1), uses_gpu=uses_gpu)
            assert cluster.pool(real.size, uses_gpu=uses_gpu) == real


@pytest.mark.parametrize(
    ("part", "kind"), [(0.4, "scan"), (1.5, "sharded"), (2.9, "sharded"), (3.1, "replicated")]
)
def test_placements_are_those_of_jobs(monkeypatch, part, kind):
    monkeypatch.setattr(pools, "capacity", lambda: {"CPU": 4.0})
    monkeypatch.setattr(session, "nodes", lambda: 1)
    monkeypatch.setattr(scaling, "node_cpus", lambda: 4)
    search = {"plans": {"exact-plain": vars(SearchPlan())}, "chosen": "exact-plain"}
    manifest = {"shape": [3, 28, 28], "metric": "euclidean", "reals": 1000, "search": search}
    manifold = StoredManifold("nowhere", manifest | {"shards": [{}, {}, {}]})
    memory = int(manifold.size * part)
    cluster = Cluster(1, 4, 4, 0, int(memory / SHARE) + 1)
    pool = cluster.pool(None, uses_gpu=False)
    assert pool.size == 3
    real, _ = place(manifold, pools.SearchDemand(memory=memory), pool)
    made = model.plan_attribute(changed("sizes", real=manifold.real_bytes), 100, 1000, cluster)
    assert made.placement == real.kind == kind
    assert ("holders of shards" in made.limits) == (kind == "sharded")


def test_a_scan_reads_the_manifold_for_each_chunk():
    small = Cluster(1, 16, 16, 0, GIB // 1024)
    made = model.plan_attribute(MEASURED, 10_000, 4000, small, 2)
    assert made.placement == "scan"
    search = next(stage for stage in made.stages if stage.name == "search")
    rows = int(GIB / 2048 / 4 / 9408)
    assert search.read == pytest.approx(4000 * 9408 * -(-10_000 // rows))


def test_prices_are_of_machines_storage_and_requests():
    prices = Prices(0.05, 2.0, 0.02, (0.005, 0.0004))
    cluster = Cluster(10, 8, 8, 1, GIB)
    costs = prices.of(cluster, 7200, 5e9, 1000, 10_000)
    assert costs == pytest.approx(
        {"cpus": 8.0, "gpus": 40.0, "storage_month": 0.1, "requests": 0.009}
    )
    assert Prices().of(cluster, 7200, 5e9, 1000, 1000) == {}


def test_runs_give_back_what_they_were_made_of():
    here = Cluster(1, 4, 4, 0, 8 * GIB)
    true = changed("sizes", unit=500)
    made = model.plan_attribute(true, 4000, 4000, here)
    first = made.parts["start"] + made.parts["images"] / 8
    parts = [first + n * made.parts["images"] / 8 for n in range(8)]
    attributed = CommandRun(0.0, parts, 4000, made.seconds)
    building = CommandRun(0.0, [], 0, model.plan_build_manifold(true, 4000, here).seconds)
    zero = changed("fixed", start=0, end=0, build_end=0, contention=1)
    found = fitted(zero, here, attributed, building, 4000, 500).fixed
    assert found.model_dump() == pytest.approx(MEASURED.fixed.model_dump())


def test_measurements_are_read_as_written(tmp_path):
    uri = str(tmp_path / "m.json")
    MEASURED.write(uri)
    assert Measurements.read(uri) == MEASURED
    wrong = json.loads(Path(uri).read_text())
    del wrong["fixed"]["end"]
    Path(uri).write_text(json.dumps(wrong))
    with pytest.raises(ManifptError, match=r"fixed.end: Field required; make it by --measure"):
        Measurements.read(uri)


def test_the_command_plans_a_cluster(tmp_path, capsys):
    MEASURED.write(f"{tmp_path}/m.json")
    flags = ["--measurements", f"{tmp_path}/m.json", "--images", "1e9", "--real", "1e6"]
    more = ["--nodes", "20", "--cpus", "16", "--workers", "100", "200", "--memory", "32"]
    prices = ["--price-cpu-hour", "0.04", "--price-requests", "0.005", "0.0004"]
    assert plan.main([*flags, *more, *prices, "--json", f"{tmp_path}/plan.json"]) == 0
    shown = capsys.readouterr().err
    for word in ("attribute: 1,000,000,000 images", "copies", "cost:", "requests:"):
        assert word in shown
    found = json.loads(Path(f"{tmp_path}/plan.json").read_text())
    kinds = [(row["job"], row["workers"]) for row in found["plans"]]
    assert kinds == [(job, n) for job in ("build_manifold", "attribute") for n in (100, 200)]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "--measurements: give"),
        (["--measure", "x.json"], "--measure: needs --input and --model"),
        (["--measurements", "M"], "--images: say how many"),
        (["--measurements", "M", "--images", "0"], "--images: Input should be"),
        (["--measurements", "M", "--images", "9", "--workers", "99"], "--workers 99: 3 fit"),
        (["--measurements", "M", "--images", "9", "--gpus", "1"], "--gpus 1: measured without"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, capsys, flags, says):
    MEASURED.write(f"{tmp_path}/m.json")
    assert plan.main([f"{tmp_path}/m.json" if flag == "M" else flag for flag in flags]) == 2
    assert says in capsys.readouterr().err


def test_images_are_counted_where_that_is_cheap(tmp_path):
    files = write_folder(tmp_path / "files", "real", range(3))
    data = {"id": ["a", "b"], "image": [png("real", n) for n in range(2)]}
    pq.write_table(pa.table(data), tmp_path / "some.parquet")
    found = _images([f"{files}", f"{tmp_path}/some.parquet"], Selection(), {})
    assert found["kinds"] == {"files": 1, "parquet": 1}
    assert found["images"] == 5
    tar = write_tar(tmp_path / "some.tar", [("a.png", png("real", 1))])
    assert _images([f"{files}", f"{tar}"], Selection(), {})["images"] is None


def test_a_manifold_is_measured_in_its_own_space(chain):
    flags = space_flags(StoredManifold.open(f"{chain}/m"))
    same = "--space rgb --image-size 16 --filter bicubic --metric euclidean --tiles 0"
    assert flags == same.split()


def test_dry_runs_say_what_jobs_would_do_and_write_nothing(
    chain, corpus, tmp_path, tmp_path_factory, capsys
):
    def told(job, *flags):
        capsys.readouterr()
        assert job.main([*flags, "--output", f"{tmp_path}/out", "--dry-run"]) == 0
        assert not list(tmp_path.iterdir())
        return json.loads(capsys.readouterr().out)

    reals = told(build_manifold, "--input", f"real={corpus}/manifold")
    assert reals["inputs"]["images"] == 60
    assert reals["stages"][-1] == "held-out"
    given = ["--input", *labelled(corpus)]
    made = told(compute_artifacts, *given, "--manifold", f"{chain}/m")
    assert made["inputs"]["images"] == 180
    assert "replicated" in made["manifolds"][0]
    assert made["processes"]["size"] >= 1
    verdicts = told(attribute, *given, "--model", f"{chain}/t")
    assert verdicts["manifolds"] == made["manifolds"]
    assert verdicts["cost"] == {"max_cost": None}
    file = tmp_path_factory.mktemp("measured") / "here.json"
    MEASURED.write(str(file))
    prices = ["--price-cpu-hour", "0.5", "--max-cost", "3", "--measurements", str(file)]
    cost = told(attribute, *given, "--model", f"{chain}/t", *prices)["cost"]
    # Four CPUs are up, of which this session may take two.
    assert (cost["nodes_an_hour"], cost["most_an_hour"], cost["hours_of_max_cost"]) == (2, 1, 3)
    assert cost["estimate"] == pytest.approx(cost["seconds"] / 3600)
    assert MEASURED.fixed.start < cost["seconds"] < 3600
    trained = told(train_attribution, "--input", f"{chain}/a")
    assert trained["inputs"] == {"kinds": ["artifacts"], "images": 180}
    assert trained["stages"] == ["audit", "train", "validate"]
    evaluated = told(evaluate, "--input", f"{chain}/a", "--model", f"{chain}/t")
    assert evaluated["inputs"]["images"] == 180


@pytest.mark.slow
def test_a_machine_is_measured_and_planned_for(chain, corpus, tmp_path):
    flags = ["--measure", f"{tmp_path}/m.json", "--model", f"{chain}/t", "--images", "1e5"]
    images = ["--input", *(f"{corpus}/labelled/{kind}" for kind in ("real", "stripes", "blocks"))]
    assert plan.main([*flags, *images, "--json", f"{tmp_path}/plan.json"]) == 0
    measured = Measurements.read(f"{tmp_path}/m.json")
    assert measured.sizes.unit == 60
    assert measured.images.reals == 60
    assert measured.images.decode > 0
    assert measured.fixed.actor > 1
    assert measured.serial.chunk > 0
    rows = json.loads(Path(f"{tmp_path}/plan.json").read_text())["plans"]
    assert [row["job"] for row in rows] == ["build_manifold", "attribute"]
    assert all(row["seconds"] > 1 for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "plan.json"]
