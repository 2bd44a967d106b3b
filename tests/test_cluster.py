from pathlib import Path

import yaml

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
