"""Ray: the running cluster if there is one, else an embedded one; and its errors as one line."""

import json
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from manifpt.engine import pools, scaling
from manifpt.errors import ManifptError

NO_PROGRESS_SECONDS = 600
ANSWER_SECONDS = 5
# How a client of HTTP/2 begins, with an empty frame of settings, and the type of such a frame,
# with which a server begins, too (RFC 9113, sections 3.4 and 6.5).
SETTINGS = b"\x04"
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + SETTINGS + bytes(5)
# Variables that Ray's processes inherit; cluster/Dockerfile has them, too. GNU's OpenMP spins for
# milliseconds where it waits, and keeps a reader from the core: this many turns, some 0.1 ms, span
# the gaps between a network's layers. And glibc lets each thread keep its freed memory, so that
# actors grew with the number of images.
INHERITED = {"GOMP_SPINCOUNT": "3000", "MALLOC_ARENA_MAX": "2"}
# A Ray of our own has one node: a training needs no process that watches which are taken away.
ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def start() -> None:
    """Connect to the cluster that RAY_ADDRESS names, or that runs here; else start one."""
    # Imported here as everywhere in the library: `--help` must not wait for Ray.
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # A job prints the first error of its tasks; Ray would print those of the others after it.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    patience = NO_PROGRESS_SECONDS
    if pools.limits():  # a node that was lost may be long in coming back
        patience += int(scaling.wait_seconds())
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(patience))
    os.environ.setdefault("RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S", str(patience))
    import ray
    import ray.data

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        found = ray._private.utils.read_ray_address()
        if address:
            with _connecting(f"RAY_ADDRESS {address}", "is the head up?"):
                ray.init(log_to_driver=False, logging_level=logging.ERROR)
        # Ray would wait for minutes for a cluster whose crash has left its address behind.
        elif _answers(found):
            with _connecting(f"the Ray at {found}", "`ray stop` ends it, RAY_ADDRESS says another"):
                _init(None)
        else:
            for name, value in ALONE.items():
                os.environ.setdefault(name, value)
            with _connecting("Ray does not start", "the machine may be too busy; try again"):
                _init("local")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    if pools.limits():  # Ray Data asks for nodes by itself
        most = pools.whole_cluster()
        context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
            cpu=most.get("CPU", 0.0), gpu=most.get("GPU", 0.0)
        )
    # The errors in its log are in the exception, too.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _init(address: str | None) -> None:
    import ray

    with _for_workers(INHERITED):
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


@contextmanager
def _connecting(what: str, remedy: str) -> Iterator[None]:
    """Turn an error of Ray at its start into one line; some are plain exceptions."""
    try:
        yield
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ManifptError(f"{what}: {reason}; {remedy}") from None


def _answers(address: str | None) -> bool:
    """Tell whether a server of Ray's may listen at host:port: one of HTTP/2, as gRPC is.

    Ray itself would try for minutes, even if another program listens at that port.
    """
    host, _, port = (address or "").rpartition(":")
    try:
        place = host.strip("[]"), int(port)
        with socket.create_connection(place, ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "0":
                return True
            connection.sendall(HTTP2)
            return connection.recv(9)[3:4] == SETTINGS
    except (OSError, ValueError):
        return False


@contextmanager
def _for_workers(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for processes that start in the block, unless the user has set them."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def identity() -> dict[str, str]:
    """Return Ray's id of this job, and the submission id where `ray job submit` started it."""
    import ray

    ids = {"ray_job_id": ray.get_runtime_context().get_job_id()}
    # `ray job submit` passes it to its driver; there is no public call that returns it.
    submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    submission = submitted.get("metadata", {}).get("job_submission_id")
    return ids | ({"ray_submission_id": submission} if submission else {})


def free_placement_groups() -> None:
    """Free the placement groups of this job's trainings whose processes were killed.

    Ray Train's own cleaner asks the dashboard, which an embedded cluster has not. The last bytes of
    a placement group's id are those of the job that made it.
    """
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    for name, found in ray.util.placement_group_table().items():
        if name.endswith(job) and found["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(name))))


def nodes() -> int:
    """Return the number of nodes that the cluster has now."""
    import ray

    return sum(bool(node["Alive"]) for node in ray.nodes())


LOSSES = (
    "RayActorError WorkerCrashedError NodeDiedError LocalRayletDiedError ObjectLostError "
    "OutOfMemoryError OutOfDiskError ObjectStoreFullError"
).split()


@contextmanager
def lost() -> Iterator[None]:
    """Turn Ray's errors for lost processes, nodes or memory into one line."""
    from ray import exceptions

    try:
        yield
    except exceptions.RayError as error:
        reason = cause(error)
        if not isinstance(reason, tuple(getattr(exceptions, name) for name in LOSSES)):
            raise  # an error of our code
        what = f"{type(reason).__name__}: {str(reason).splitlines()[0][:200]}"
        raise ManifptError(
            f"Ray lost what it worked with ({what}); look at `ray status`, then the same command "
            "goes on from here"
        ) from None


def cause(error: BaseException) -> BaseException:
    """Return the error of our own code inside Ray's wrappers.

    The wrappers of Ray Data and Ray Train have only the text of it.
    """
    texts: list[str] = []
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "cause", None) or error.__cause__
        if isinstance(error, ManifptError):  # of a task, its text would be a traceback
            return inner if isinstance(inner, ManifptError) else error
        texts += map(str, (error, *getattr(error, "worker_failures", {}).values()))
        if isinstance(inner, BaseException):
            error = inner
    text = "\n".join(texts)
    lines = re.findall(r"^manifpt\.errors\.\w+: (.+)$", text, re.MULTILINE)
    if lines:
        return ManifptError(lines[0])
    # pyarrow's, by which Ray Train keeps checkpoints.
    failed = re.search(r"^.*AWS Error (?:NETWORK_CONNECTION|SERVICE_UNAVAILABLE).*$", text, re.M)
    if failed:
        remedy = "check AWS_ENDPOINT_URL and the network, then the same command goes on from here"
        return ManifptError(f"S3 fails or does not answer ({failed[0].strip()[:300]}); {remedy}")
    return error
