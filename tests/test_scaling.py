"""Limits, requests for nodes, and what is said where none comes."""

import subprocess
import sys

import pytest

from manifpt.engine import pools, scaling
from manifpt.errors import ManifptError

CPU = {"CPU": 1.0}
NODE = {"CPU": 16.0, "GPU": 1.0}


@pytest.fixture
def head_alone(monkeypatch):
    """A cluster of which nothing but a head without CPUs is up."""
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"memory": 2.0**33})
    monkeypatch.setattr(scaling, "nodes_up", list)
    pools.limit(None)
    yield
    pools.limit({"CPU": 2})
    pools.allow(None)


@pytest.mark.parametrize(
    ("bundles", "nodes", "expected"),
    [
        ([], [], True),
        ([CPU], [], False),
        ([CPU] * 3, [{"CPU": 2.0}, {"CPU": 1.0}], True),
        ([{"CPU": 2.0}], [CPU, CPU], False),  # no node is large enough
        ([{"CPU": 1.0, "GPU": 0.5}] * 2, [NODE], True),
        ([{"CPU": 1.0, "GPU": 0.5}] * 3, [NODE], False),
        ([{"CPU": 0.1, "GPU": 0.0}] * 10, [CPU], True),
    ],
)
def test_bundles_fit_on_nodes_each_on_one(bundles, nodes, expected):
    assert scaling.bundles_fit(bundles, nodes) == expected


@pytest.mark.usefixtures("ray_session", "head_alone")
def test_a_pool_is_as_large_as_the_cluster_may_grow(monkeypatch):
    with pytest.raises(ManifptError, match=r"too small.*--max-cpus and --max-gpus"):
        pools.pool(pools.ANY, uses_gpu=True)
    monkeypatch.setenv("MANIFPT_MAX_CPUS", "8")
    assert pools.pool(pools.ANY, uses_gpu=True).size == 7
    pools.allow({"CPU": 64.0, "GPU": 4.0})  # options come before the environment
    pool = pools.pool(pools.ANY, uses_gpu=True)
    assert (pool.size, pool.process) == (4, {"CPU": 1.0, "GPU": 1.0})
    with pytest.raises(ManifptError, match=r"too small.*--num-actors 4, or say"):
        pools.pool(pools.Demand(5, 1.0), uses_gpu=True)
    monkeypatch.setenv("MANIFPT_MAX_CPUS", "many")
    with pytest.raises(ManifptError, match="MANIFPT_MAX_CPUS=many"):
        pools.limits()


@pytest.mark.usefixtures("ray_session")
def test_what_does_not_come_is_waited_for_aloud_and_not_for_ever(monkeypatch, capsys):
    monkeypatch.setenv("MANIFPT_NODE_WAIT_SECONDS", "1")
    with pytest.raises(ManifptError, match="no node came in 1 s for 500 CPU"):
        scaling.wait_for([{"CPU": 500.0}], [{"CPU": 500.0}] * 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("waiting for nodes: 500 CPU, or up to 1000 CPU; 1 up with 4 CPU; 0 s")
    assert scaling.wait_for([CPU])
    assert capsys.readouterr().err == ""


GIVEN = """
import ray
from manifpt.nets.device import device_and_precision
from manifpt.engine.session import cause
ray.init("local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
assert device_and_precision()[0] == "cpu"  # this process was given none
try:
    ray.get(ray.remote(num_gpus=1)(device_and_precision).remote(), timeout=100)
except Exception as error:
    print(cause(error))
"""


def test_a_gpu_that_torch_does_not_see_is_an_error():
    code = [sys.executable, "-c", GIVEN]
    told = subprocess.run(code, capture_output=True, text=True, timeout=250, check=True)
    assert told.stdout.startswith("Ray gave GPU 0, and torch sees none on ")
    assert told.stdout.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_job_comes_from_no_node_and_leaves_none(tmp_path, capsys):
    command = [sys.executable, "tests/from_zero.py", "--folder", str(tmp_path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=3500)
    with capsys.disabled():
        print(f"\n{done.stdout}")
    assert done.returncode == 0
