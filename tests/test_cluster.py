import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import handmade
import pytest

from cluster.local import BIN, ROOT, ClusterShape, local_cluster
from manifpt import storage

pytestmark = [pytest.mark.long, pytest.mark.ray]

CLUSTER = Path(__file__).parents[1] / "cluster"


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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_is_submitted_to_a_cluster_of_this_machine(tmp_path):
    model, crawl = handmade.attributor(tmp_path / "model"), handmade.tars(tmp_path / "crawl", 6, 20)
    flags = ["--input", str(crawl), "--model", model, "--output", f"{tmp_path}/verdicts"]
    with local_cluster(ClusterShape(3, 2)) as cluster:
        command = [BIN / "ray", "job", "submit", "--address", cluster.dashboard]
        command += ["--working-dir", ".", "--", "python", "-m", "jobs.attribute", *flags]
        done = subprocess.run(
            command, env=cluster.env, cwd=ROOT, capture_output=True, text=True, timeout=600
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    manifest = storage.read_json(f"{tmp_path}/verdicts/manifest.json")
    # Every 97th file is no image, from the first.
    assert (manifest["rows_in"], manifest["quarantined"]) == (120, 2)
