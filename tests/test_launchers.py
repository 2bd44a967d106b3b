"""The files of `ray up`, the image and the policies agree with each other and with Ray itself."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from manifpt.engine import session

CLUSTER = Path(__file__).parents[1] / "cluster"
CLOUDS = ("aws", "gcp")
GPUS = {"g6.4xlarge": 1, "g2-standard-16": 1}


def launcher(cloud: str) -> dict:
    return yaml.safe_load((CLUSTER / f"{cloud}.yaml").read_text())


def workers(config: dict) -> dict[str, dict]:
    types = config["available_node_types"]
    return {name: kind for name, kind in types.items() if name != config["head_node_type"]}


def environment(options: list[str]) -> dict[str, str]:
    words = shlex.split(" ".join(options))
    given = [words[i + 1] for i, word in enumerate(words) if word == "--env"]
    return dict(pair.split("=", 1) for pair in given)


def is_spot(kind: dict) -> bool:
    node = kind["node_config"]
    market = node.get("InstanceMarketOptions", {}).get("MarketType")
    return "spot" in (market, node.get("scheduling", {}).get("provisioningModel", "").lower())


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_launcher_file_passes_rays_own_validation(cloud):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(launcher(cloud)))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_head_runs_no_work_and_every_spot_machine_has_one_to_fall_back_to(cloud):
    config = launcher(cloud)
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert not is_spot(head)
    spots = {name: kind for name, kind in workers(config).items() if is_spot(kind)}
    assert spots
    for name, spot in spots.items():
        other = workers(config)[name.removesuffix("_spot")]
        assert not is_spot(other)
        assert other["resources"] == spot["resources"]
        assert other["max_workers"] == spot["max_workers"]
        assert other["priority"] < spot["priority"]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_every_machine_has_credentials_a_disk_for_the_image_and_the_token(cloud):
    config = launcher(cloud)
    for name, kind in config["available_node_types"].items():
        role = "manifpt-head" if name == config["head_node_type"] else "manifpt-worker"
        node = kind["node_config"]
        if cloud == "aws":
            assert node["IamInstanceProfile"] == {"Name": role}
            size = node["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"]
        else:
            assert [a["email"].split("@")[0] for a in node["serviceAccounts"]] == [role]
            size = node["disks"][0]["initializeParams"]["diskSizeGb"]
        assert size >= 100
        assert kind.get("min_workers", 0) == 0
    assert environment(config["docker"]["run_options"])["RAY_AUTH_MODE"] == "token"
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert "--ulimit nofile=65536:65536" in config["docker"]["run_options"]
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    started = [command for command in starts if "ray start" in command]
    assert len(started) == 2
    assert all(command.startswith("ulimit -n 65536;") for command in started)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_gpu_worker_sees_its_gpu_and_has_the_image_for_it(cloud):
    config = launcher(cloud)
    for kind in config["available_node_types"].values():
        node = kind["node_config"]
        gpus = GPUS.get(node.get("InstanceType") or node["machineType"], 0)
        assert kind["resources"].get("GPU", 0) == gpus
        docker = config["docker"] | kind.get("docker", {})
        assert docker.get("worker_image", docker["image"]).endswith(":gpu" if gpus else ":cpu")
        if gpus:
            shown = environment(docker["worker_run_options"])
            assert shown["NVIDIA_VISIBLE_DEVICES"] == "all"
            assert {"compute", "utility"} <= set(shown["NVIDIA_DRIVER_CAPABILITIES"].split(","))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_jobs_may_ask_for_as_much_as_the_autoscaler_may_start(cloud):
    config = launcher(cloud)
    given = environment(config["docker"]["head_run_options"])
    # A training waits for all of its workers: only what is there without spot can be promised.
    lasting = [kind for kind in workers(config).values() if not is_spot(kind)]
    for name in ("CPU", "GPU"):
        most = sum(kind["max_workers"] * kind["resources"].get(name, 0) for kind in lasting)
        assert given[f"MANIFPT_MAX_{name}S"] == str(most)
    assert config["max_workers"] == sum(kind["max_workers"] for kind in lasting)


def test_the_autoscaler_knows_the_memory_of_machines_that_ray_does_not_look_up():
    gib = {"n2-standard-16": 64, "g2-standard-16": 64}  # Google's documentation
    for kind in workers(launcher("gcp")).values():
        memory = kind["resources"]["memory"] / 2**30
        assert memory == pytest.approx(0.7 * gib[kind["node_config"]["machineType"]], rel=0.01)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_mlflow_that_jobs_are_given_is_started_on_the_head(cloud):
    config = launcher(cloud)
    uri = environment(config["docker"]["head_run_options"])["MLFLOW_TRACKING_URI"]
    (server,) = [c for c in config["head_start_ray_commands"] if "mlflow server" in c]
    host, port = re.search(r"--host (\S+) --port (\d+)", server).groups()
    assert uri == f"http://{host}:{port}"
    assert host == "127.0.0.1"  # `ray attach -p 5000` reaches it; strangers do not


def test_the_image_has_both_targets_and_is_not_root():
    text = (CLUSTER / "Dockerfile").read_text()
    stages = re.split(r"^FROM ", text, flags=re.M)[1:]
    targets = {stage.split()[2]: stage for stage in stages}
    assert set(targets) == {"base", "cpu", "gpu"}
    for name in ("cpu", "gpu"):
        assert f'-c cluster/constraints.txt ".[{name},azure,gcs,encoders]"' in targets[name]
        assert targets[name].rstrip().endswith("USER 1000:1000")
    # `--compile` calls a compiler; `ray up` reads HOME from the image.
    assert {"g++", "gcc", "HOME=/home/manifpt"} <= set(targets["base"].split())
    # Set here it would give all GPUs of a Kubernetes node to every pod on it.
    assert not re.search(r"^ENV.*NVIDIA_VISIBLE_DEVICES", text, flags=re.M)
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in targets["base"]


def test_the_image_has_what_an_embedded_rays_processes_inherit():
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    (given,) = [line.split()[1:] for line in lines if line.startswith("ENV GOMP")]
    assert dict(pair.split("=") for pair in given) == session.INHERITED


def test_constraints_pin_all_that_both_extras_name():
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (CLUSTER / "constraints.txt").read_text().splitlines()
    }
    project = tomllib.loads((CLUSTER.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *extras["cpu"], *extras["gpu"], *extras["dev"]]
    names = {re.match(r"[\w-]+", one)[0].lower().replace("_", "-") for one in named}
    assert names <= pinned
    # faiss-gpu is made with CUDA 12, torch with 13: each finds its own.
    assert {"nvidia-cublas", "nvidia-cublas-cu12", "nvidia-cuda-runtime-cu12"} <= pinned


# boto3's names that are no action of the same name.
ACTIONS = {"create_instances": "RunInstances", "filter": "DescribeInstances"}
# CloudWatch is not configured; stopped nodes are not kept (cache_stopped_nodes).
UNUSED = {"DescribeImages", "StartInstances", "StopInstances"}


def policy(role: str) -> dict[str, list[str]]:
    """Return the actions of a role's own policy, and what each may act on."""
    found: dict[str, list[str]] = {}
    document = json.loads((CLUSTER / f"aws-policy-{role}.json").read_text())
    for statement in document["Statement"]:
        assert statement["Effect"] == "Allow"
        actions, on = statement["Action"], statement["Resource"]
        for action in [actions] if isinstance(actions, str) else actions:
            found.setdefault(action, []).extend([on] if isinstance(on, str) else on)
    return found


def test_the_heads_policy_has_what_rays_autoscaler_calls_and_no_more():
    from ray.autoscaler._private.aws import node_provider

    source = Path(node_provider.__file__).read_text()
    calls = re.findall(r"(?:ec2|client|ec2_fail_fast|instances)\.(\w+)\b(?:\(|\n)", source)
    called = {ACTIONS.get(c, "".join(w.capitalize() for w in c.split("_"))) for c in calls}
    called = {c for c in called if re.match("Describe|Run|Create|Start|Stop|Terminate", c)}
    assert called > {"RunInstances", "CreateTags", "TerminateInstances", "DescribeInstances"}
    own = policy("head")
    assert {f"ec2:{c}" for c in called - UNUSED} == {a for a in own if a.startswith("ec2:")}
    # A worker's profile must be passed to it; the machine's image is named by a parameter.
    assert {a for a in own if not a.startswith("ec2:")} == {"iam:PassRole", "ssm:GetParameters"}
    assert not launcher("aws")["provider"]["cache_stopped_nodes"]


def test_the_policies_allow_no_more_than_one_role_one_prefix_and_one_repository():
    own, storage = policy("head"), policy("worker")
    assert own["iam:PassRole"] == ["arn:aws:iam::ACCOUNT:role/manifpt-worker"]
    for action in ("s3:GetObject", "s3:PutObject", "s3:DeleteObject"):
        assert storage[action] == ["arn:aws:s3:::BUCKET/manifpt/*"]
    everything = {action for one in (own, storage) for action, on in one.items() if "*" in on}
    looks = {"ec2:DescribeInstances", "ec2:DescribeInstanceTypes", "ecr:GetAuthorizationToken"}
    assert everything == looks  # these can't be narrowed
    region = launcher("aws")["provider"]["region"]
    text = "".join((CLUSTER / f"aws-policy-{role}.json").read_text() for role in ("head", "worker"))
    assert set(re.findall(r"arn:aws:(?:ec2|ecr|ssm):([\w-]*):", text)) == {region}
