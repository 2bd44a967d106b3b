"""The seam for GPUs: with logical ones on any machine, with real ones where there are any."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mobilenet

from manifpt.manifold import Shard, nearest
from manifpt.manifold.index import flat, has_gpu
from manifpt.manifold.search import Plan
from manifpt.spaces import Options, learned, make_space

LOGICAL = """
import sys
import numpy as np, ray
from manifpt import session
from manifpt.manifold import Manifold
from manifpt.manifold.placement import place
ray.init("local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
manifold = Manifold.open(sys.argv[1])
pool = session.pool(session.Demand(2, 1.0), uses_gpu=False)
placement, smaller = place(manifold, session.SearchDemand(placement="sharded"), pool)
searcher = placement.searcher()
whole = manifold.read(placement.plan)
found = searcher.nearest(whole.vectors[:9], 1, np.full(9, "", dtype=object))
assert found.id[:, 0].tolist() == whole.ids[:9].tolist()
print(placement.reserved["GPU"], smaller.num_gpus, ray.available_resources().get("GPU", 0.0))
"""


def test_holders_take_the_gpus_that_were_asked_for(built):
    command = [sys.executable, "-c", LOGICAL, built]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert told.stdout.split()[-3:] == ["2.0", "0.0", "0.0"]


EMBED = """
import sys
import ray
from manifpt import session
from manifpt.device import precision_of
from manifpt.manifold.build import build_manifold
from manifpt.spaces import Options
ray.init("local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
pool = session.pool(session.ANY, uses_gpu=True)
network = Options(
    sl_network="mobilenet_v2", sl_weights=sys.argv[2], network_size=32, precision="auto"
)
made = build_manifold([sys.argv[1]], sys.argv[3], space="sl", options=network)
print(pool.size, pool.num_gpus, made["ok"], made["space"]["precision"], precision_of("auto", pool))
"""


@pytest.mark.slow
def test_embedding_actors_take_gpus_and_leave_readers_a_cpu(built, tmp_path):
    reals = f"{Path(built).parent}/reals"
    command = [sys.executable, "-c", EMBED, reals, mobilenet(), str(tmp_path / "m")]
    told = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    expected = ["float32"] * 2 if not torch.cuda.is_available() else ["bfloat16"] * 2
    assert told.stdout.split()[-5:] == ["2", "1.0", "300", *expected]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_on_a_gpu_gives_the_vectors_of_the_cpu_but_for_rounding(precision, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (50, 64, 64, 3), dtype=np.uint8)
    options = Options(sl_network="mobilenet_v2", sl_weights=mobilenet(), network_size=64)
    space = replace(make_space("sl", 64, options), precision=precision)
    on_gpu = space.embed(images)
    assert learned.encoder(space).device == "cuda"
    learned.encoder.cache_clear()
    monkeypatch.setattr(learned, "device_and_precision", lambda: ("cpu", None))
    on_cpu = replace(space, precision="float32").embed(images)
    assert np.abs(on_gpu - on_cpu).max() <= space.tolerance * np.abs(on_cpu).max()


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
    found = nearest([shard], queries, 3, None, Plan("index", float16=float16))
    expected = nearest([shard], queries, 3)
    assert found.id.tolist() == expected.id.tolist()
    assert found.distance.tobytes() == expected.distance.tobytes()
