"""The seam for GPUs: with logical ones on any machine, with real ones where there are any."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from conftest import labelled, mobilenet

from manifpt.engine import session
from manifpt.manifold import Shard, nearest
from manifpt.manifold.index import flat, has_gpu
from manifpt.manifold.search import SearchPlan
from manifpt.nets.device import may_use_gpu
from manifpt.spaces import SpaceSettings, learned, make_space

LOGICAL = """
import sys
import numpy as np, ray
from manifpt.engine import pools, session
from manifpt.nets.device import may_use_gpu
from manifpt.manifold import StoredManifold
from manifpt.manifold.placement import place
ray.init("local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
manifold = StoredManifold.open(sys.argv[1])
pool = pools.pool(pools.Demand(2, 1.0), uses_gpu=False)
placement, smaller = place(manifold, pools.SearchDemand(placement="sharded"), pool)
searcher = placement.searcher()
whole = manifold.read(placement.plan)
found = searcher.nearest(whole.vectors[:9], 1, np.full(9, "", dtype=object))
assert found.id[:, 0].tolist() == whole.ids[:9].tolist()
print(placement.reserved["GPU"], smaller.num_gpus, ray.available_resources().get("GPU", 0.0))
given = [ray.remote(num_cpus=0, num_gpus=n)(may_use_gpu).remote() for n in (0, 0.5)]
print(may_use_gpu(), *ray.get(given, timeout=60))
"""


def test_holders_take_half_of_each_gpu_and_only_who_has_one_uses_it(built):
    assert may_use_gpu() != ray.is_initialized()
    command = [sys.executable, "-c", LOGICAL, built]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert told.stdout.split()[-6:] == ["1.0", "0.5", "1.0", "False", "False", "True"]


EMBED = """
import os, sys
import ray
os.environ["MANIFPT_LOGICAL_GPUS"] = "1"
from manifpt.engine import pools, session
from manifpt.manifold.build import ManifoldSettings, build_manifold
from manifpt.spaces import SpaceSettings
ray.init("local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
pool = pools.pool(pools.ANY, uses_gpu=True)
network = SpaceSettings(
    sl_network="mobilenet_v2", sl_weights=sys.argv[2], network_size=32, precision="auto"
)
settings = ManifoldSettings(spaces=network)
made = build_manifold([sys.argv[1]], sys.argv[3], space="sl", settings=settings)
print(pool.size, pool.num_gpus, made["ok"], made["space"]["precision"])
"""


@pytest.mark.slow
def test_embedding_actors_take_gpus_and_leave_readers_a_cpu(built, tmp_path):
    reals = f"{Path(built).parent}/reals"
    command = [sys.executable, "-c", EMBED, reals, mobilenet(), str(tmp_path / "m")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    assert told.stdout.split() == ["2", "1.0", "300", "float16"]


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def network(size: int, **options):
    given = SpaceSettings(sl_network="mobilenet_v2", sl_weights=mobilenet(), network_size=size)
    return replace(make_space("sl", 64, given), **options)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_a_network_on_a_gpu_gives_the_vectors_of_the_cpu_but_for_rounding(
    precision, compiled, monkeypatch
):
    images, space = noise(50), network(64, precision=precision, compiled=compiled)
    on_gpu = space.embed(images)
    assert learned.loaded_encoder(space).device == "cuda"
    learned.loaded_encoder.cache_clear()
    monkeypatch.setattr(learned, "device_and_precision", lambda: ("cpu", None))
    on_cpu = network(64).embed(images)
    assert np.abs(on_gpu - on_cpu).max() <= space.tolerance * np.abs(on_cpu).max()


@pytest.mark.gpu
def test_a_batch_that_does_not_fit_is_halved():
    learned.loaded_encoder.cache_clear()
    images, space = noise(1024), network(224)
    whole = space.embed(images)
    learned.loaded_encoder.cache_clear()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(
        1.5e9 / torch.cuda.get_device_properties(0).total_memory
    )
    try:
        in_parts = space.embed(images)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert learned.loaded_encoder(space).batch < learned.GPU_BATCH
    assert np.abs(in_parts - whole).max() <= space.tolerance * np.abs(whole).max()


@pytest.fixture
def cluster_with_gpus():
    session.start()
    yield
    ray.shutdown()  # the driver may use them again


@pytest.mark.gpu
def test_trained_and_attributed_on_a_gpu_twice_the_same(cluster_with_gpus, corpus, tmp_path):
    from manifpt.jobs import attribute, build_manifold, compute_artifacts, train_attribution

    weights = ["--sl-network", "mobilenet_v2", "--sl-weights", mobilenet(), "--network-size", "64"]
    place = {name: str(tmp_path / name) for name in "matxy"}
    reals = ["--input", f"real={corpus}/manifold", "--space", "rgb+sl", *weights]
    assert build_manifold.main([*reals, "--output", place["m"]]) == 0
    manifolds = ["--manifold", f"{place['m']}/rgb", f"{place['m']}/sl"]
    flags = ["--input", *labelled(corpus), *manifolds, "--output", place["a"]]
    assert compute_artifacts.main(flags) == 0
    branches = [f"{place['a']}/rgb", f"{place['a']}/sl"]
    flags = ["--backbone", "resnet18", "--stem", "half", "--epochs", "3", "--batch-size", "16"]
    assert train_attribution.main(["--input", *branches, "--output", place["t"], *flags]) == 0
    for output in (place["x"], place["y"]):
        flags = ["--input", str(corpus / "labelled"), "--model", place["t"], "--output", output]
        assert attribute.main(flags) == 0
    tables = sorted(Path(place["x"], "attributions").iterdir())
    assert tables
    for table in tables:
        again = Path(place["y"], "attributions", table.name)
        assert table.read_bytes() == again.read_bytes()
    made = json.loads(Path(place["m"], "sl", "manifest.json").read_text())
    assert made["space"]["precision"] == "float16"


@pytest.mark.gpu
@pytest.mark.parametrize("float16", [False, True])
def test_a_gpu_proposes_and_the_result_is_exact(float16):
    assert has_gpu()
    rng = np.random.default_rng(0)
    reals = rng.random((5000, 768), dtype=np.float32)
    queries = np.concatenate([reals[:50] + np.float32(1e-3), rng.random((50, 768), np.float32)])
    ids = np.array([f"{n:05d}" for n in range(5000)], dtype=object)
    shard = Shard(reals, ids, ids)
    index, _ = flat(np.ascontiguousarray(reals - shard.centre), float16=float16)
    assert "Gpu" in type(index).__name__
    found = nearest([shard], queries, 3, None, SearchPlan("index", float16=float16))
    expected = nearest([shard], queries, 3)
    assert found.id.tolist() == expected.id.tolist()
    assert found.distance.tobytes() == expected.distance.tobytes()
