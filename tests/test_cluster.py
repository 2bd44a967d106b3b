import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from manifpt.engine import session

CLUSTER = Path(__file__).parents[1] / "cluster"


def test_the_launcher_file_passes_rays_own_validation():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    validate_config(prepare_config(config))
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]
    assert all(
        "RAY_AUTH_MODE=token" in config[f"{n}_start_ray_commands"][-1] for n in ("head", "worker")
    )


def test_the_rayjob_runs_the_chain_on_the_pinned_ray():
    job = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    pinned = (CLUSTER / "constraints.txt").read_text()
    assert f"ray=={job['spec']['rayClusterSpec']['rayVersion']}" in pinned
    assert job["spec"]["entrypoint"].startswith("python -m jobs.")


def test_the_image_has_what_an_embedded_rays_processes_inherit():
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    (given,) = [line.split()[1:] for line in lines if line.startswith("ENV GOMP")]
    assert dict(pair.split("=") for pair in given) == session.INHERITED


def test_code_travels_to_a_cluster_and_what_jobs_wrote_beside_it_does_not():
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    excludes = get_excludes_from_ignore_files(CLUSTER.parent, include_gitignore=True)
    code = ["jobs/attribute.py", "manifpt/images/read.py", "tuning/quick.yaml", "mine.yaml", "."]
    outputs = ["verdicts/manifest.json", "manifold", "photos.tar", ".venv", ".git", "mlruns"]
    found = {n: any(out(CLUSTER.parent / n) for out in excludes) for n in code + outputs}
    assert found == dict.fromkeys(code, False) | dict.fromkeys(outputs, True)


@pytest.mark.parametrize("taken", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_address_of_a_cluster_that_has_crashed_is_not_waited_for(taken):
    # Not tmp_path: the paths of sockets may have 107 characters.
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        socket.create_server(("127.0.0.1", 0)) as other,  # accepts, and never says a word
    ):
        port = other.getsockname()[1] if taken else 9
        Path(folder, "ray").mkdir()
        Path(folder, "ray", "ray_current_cluster").write_text(f"127.0.0.1:{port}")
        code = "import ray; from manifpt.engine import session; session.start(); ray.shutdown()"
        env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"RAY_TMPDIR": folder}
        subprocess.run([sys.executable, "-c", code], env=env, timeout=60, check=True)
