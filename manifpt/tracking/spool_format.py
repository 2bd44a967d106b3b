"""The records of a spool, one JSON object a line: ``op``, and the token of the run.

Times are milliseconds since 1970.
"""

from typing import Any, Literal, TypedDict, final


@final
class OpenRecord(TypedDict):
    """Open a run, as a child of the run of the token ``parent``, if there is one."""

    op: Literal["open"]
    run: str
    name: str
    tags: dict[str, str]
    parent: str | None
    at: int


@final
class KnownRecord(TypedDict):
    """Take over an existing run, whose token is MLflow's id."""

    op: Literal["known"]
    run: str


@final
class MetricsRecord(TypedDict):
    """Log metrics: name, value, time and step of each, arrays in JSON."""

    op: Literal["metrics"]
    run: str
    metrics: list[tuple[str, float, int, int]]


@final
class ParamsRecord(TypedDict):
    """Log parameters."""

    op: Literal["params"]
    run: str
    params: dict[str, str]


@final
class TagsRecord(TypedDict):
    """Set tags."""

    op: Literal["tags"]
    run: str
    tags: dict[str, str]


@final
class DocumentRecord(TypedDict):
    """Log a JSON value as a file."""

    op: Literal["document"]
    run: str
    name: str
    value: Any


@final
class FileRecord(TypedDict):
    """Log a file of the spool."""

    op: Literal["file"]
    run: str
    path: str


class InputDataset(TypedDict):
    """An input: its URI, its name as the user gave it, and a part of the hash of all inputs."""

    uri: str
    name: str
    digest: str


@final
class InputsRecord(TypedDict):
    """Log input datasets, which a job uses for ``context``."""

    op: Literal["inputs"]
    run: str
    inputs: list[InputDataset]
    context: str


@final
class ModelRecord(TypedDict):
    """Log the attributor in a folder as a model."""

    op: Literal["model"]
    run: str
    uri: str


@final
class EndRecord(TypedDict):
    """End a run: FINISHED, KILLED or FAILED."""

    op: Literal["end"]
    run: str
    status: str
    at: int


Record = (
    OpenRecord
    | KnownRecord
    | MetricsRecord
    | ParamsRecord
    | TagsRecord
    | DocumentRecord
    | FileRecord
    | InputsRecord
    | ModelRecord
    | EndRecord
)
