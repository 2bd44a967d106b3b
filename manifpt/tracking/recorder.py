"""Send each kind of record with MLflow's client; a record may be sent twice."""

from typing import Any

from manifpt.errors import ManifptError
from manifpt.tracking import server
from manifpt.tracking.spool import MOST_METRICS, Spool, State
from manifpt.tracking.spool_format import InputsRecord, OpenRecord, Record


def advance(spool: Spool, uri: str, most: int = MOST_METRICS) -> bool:
    """Send the next record of a spool, or its next ``most`` metrics; False if none is left.

    Raises the errors of MLflow. A record that MLflow refuses is skipped before its error is raised.
    """
    with spool.turn():
        state = spool.state()
        following = spool.next(state, most)
        if following is None:
            return False
        record, end = following
        try:
            runs = state.runs | write(uri, record, state.runs)
        except Exception as error:
            if not server.refuses(error):
                raise
            if record["op"] != "metrics" or len(record["metrics"]) < 2:
                spool.save(State(end, state.runs))
                raise
        else:
            spool.save(State(end, runs))
            return True
    return advance(spool, uri, most=1)  # one of several metrics was refused


def write(uri: str, record: Record, runs: dict[str, str]) -> dict[str, str]:
    """Send a record and return the ids of new runs; ``runs`` are MLflow's ids by token."""
    if record["op"] == "known":
        return {record["run"]: record["run"]}
    client, experiment = server.client(uri)
    if record["op"] == "open":
        return {record["run"]: _opened(client, experiment, record, runs)}
    run_id = runs[record["run"]]
    match record["op"]:
        case "metrics":
            _metrics(client, run_id, record["metrics"])
        case "params":
            _params(client, run_id, record["params"])
        case "tags":
            for name, value in record["tags"].items():
                client.set_tag(run_id, name, value)
        case "document":
            client.log_dict(run_id, record["value"], record["name"])
        case "file":
            client.log_artifact(run_id, record["path"])
        case "inputs":
            _inputs(client, run_id, record)
        case "model":
            _model(run_id, record["uri"])
        case "end":
            _only(client, experiment, record["run"], run_id)
            client.set_terminated(run_id, record["status"], record["at"])
    return {}


def _opened(client: Any, experiment: str, record: OpenRecord, runs: dict[str, str]) -> str:
    found = _only(client, experiment, record["run"])
    if found is not None:
        return found
    parent = runs.get(record["parent"] or "")
    tags = record["tags"] | {"manifpt.token": record["run"]}
    tags |= {"mlflow.parentRunId": parent} if parent else {}
    return str(client.create_run(experiment, record["at"], tags, record["name"]).info.run_id)


def _only(client: Any, experiment: str, token: str, keep: str | None = None) -> str | None:
    """Return the id of a token's run, or None, and delete other runs with the same token.

    Others exist if a server created a run but did not answer, and was asked again.
    """
    found = client.search_runs([experiment], f"tags.`manifpt.token` = '{token}'")
    ids = [str(run.info.run_id) for run in found]
    kept = keep or (ids[0] if ids else None)
    for other in ids:
        if other != kept:
            client.delete_run(other)
    return kept


def _metrics(client: Any, run_id: str, rows: list[tuple[str, float, int, int]]) -> None:
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(*row) for row in rows])


def _params(client: Any, run_id: str, params: dict[str, str]) -> None:
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(*item) for item in params.items()])


def _inputs(client: Any, run_id: str, record: InputsRecord) -> None:
    import warnings

    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    inputs = []
    for given in record["inputs"]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about several kinds of source that would match
            source = resolve_dataset_source(given["uri"])
        dataset = MetaDataset(source, name=given["name"], digest=given["digest"])
        tag = InputTag("mlflow.data.context", record["context"])
        inputs.append(DatasetInput(dataset._to_mlflow_entity(), [tag]))
    client.log_inputs(run_id, datasets=inputs)


def _model(run_id: str, uri: str) -> None:
    from manifpt.registry.register import log_model

    try:
        log_model(uri, run_id)
    except ManifptError as error:  # the attributor is complete, even if its manifold is gone
        raise ManifptError(f"not logged as an MLflow model: {error}") from error
