"""A job's options: one frozen model a job, read from flags, a YAML file, or both."""

import argparse
import difflib
import re
import sys
import types
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from manifpt.cli.options import InputOptions, ProjectionOptions
from manifpt.cli.shipped import shipped
from manifpt.engine.pools import Demand, SearchDemand
from manifpt.errors import ManifptError

if TYPE_CHECKING:
    from manifpt.outputs.claims import Terms


class JobConfig(BaseModel):
    """The options that every job has. Flags win over the file that --config names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: str | None = Field(None, description="YAML file of options, by their long names")
    json_file: str | None = Field(
        None, alias="json", description="write the job's summary to this file as JSON"
    )
    overwrite: bool = Field(
        False,
        description="replace the results in --output that other settings made; all other files "
        "stay",
    )
    take_over: bool = Field(
        False, description="work in --output although another run seems to be active there"
    )
    num_actors: int | None = Field(
        None,
        ge=1,
        description="number of worker processes; if not given, as many as fit beside a reader",
    )
    num_gpus_per_actor: float | None = Field(
        None,
        ge=0,
        description="GPUs per worker process; if not given, one if the cluster has GPUs, else none",
    )
    max_cpus: float | None = Field(
        None,
        ge=0,
        description="number of CPUs to which an autoscaling cluster may grow; if not given, "
        "MANIFPT_MAX_CPUS, else the CPUs that are up",
    )
    max_gpus: float | None = Field(
        None,
        ge=0,
        description="number of GPUs to which it may grow; if not given, MANIFPT_MAX_GPUS, else "
        "the GPUs that are up",
    )
    max_cost: float | None = Field(
        None,
        gt=0,
        description="stop the job when the nodes have cost this amount, in all starts with this "
        "--output together; the same command with a larger limit continues it",
    )
    price_cpu_hour: float | None = Field(None, ge=0, description="price of one CPU for an hour")
    price_gpu_hour: float | None = Field(None, ge=0, description="price of one GPU for an hour")

    @property
    def limits(self) -> dict[str, float]:
        """The limits of the cluster's growth that options give, by Ray's names."""
        given = {"CPU": self.max_cpus, "GPU": self.max_gpus}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def prices(self) -> dict[str, float]:
        """Prices of an hour, by Ray's names, as far as options say."""
        given = {"CPU": self.price_cpu_hour, "GPU": self.price_gpu_hour}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def demand(self) -> Demand:
        """The processes asked for."""
        return Demand(self.num_actors, self.num_gpus_per_actor)

    @property
    def terms(self) -> "Terms":
        """The terms on which the job may replace its output."""
        from manifpt.outputs.claims import Terms

        return Terms(self.overwrite, self.take_over)


class EmbeddingConfig(JobConfig):
    """The options of jobs that embed images."""

    compile: bool = Field(False, description="sl, ssl: compile the network first (torch.compile)")

    @property
    def demand(self) -> Demand:
        """The processes asked for."""
        return Demand(self.num_actors, self.num_gpus_per_actor, self.compile)


class SearchConfig(EmbeddingConfig):
    """The options of jobs that search a manifold; the result depends on none that is exact."""

    search: Literal["auto", "exact-plain", "exact-pruned", "approximate"] = Field(
        "auto",
        description="method that finds neighbours; auto takes the one that was fastest when the "
        "manifold was built",
    )
    placement: Literal["auto", "replicated", "sharded", "scan"] = Field(
        "auto",
        description="where the manifold lies during the search: a copy in each process "
        "(replicated), distributed over actors (sharded), or in storage (scan)",
    )
    manifold_memory: float | None = Field(
        None,
        gt=0,
        description="GiB of memory for the manifold in the whole job; if not given, half of "
        "Ray's memory",
    )
    gpu_float16: bool = Field(
        False, description="keep the manifold in half precision on GPUs; results stay exact"
    )

    @property
    def search_demand(self) -> SearchDemand:
        """The search asked for."""
        memory = int(self.manifold_memory * 2**30) if self.manifold_memory else None
        return SearchDemand(self.search, self.placement, memory, self.gpu_float16)

    @property
    def demand(self) -> Demand:
        """The processes and the search asked for."""
        return replace(super().demand, search=self.search_demand)


def _model_name(name: str) -> str:
    if not re.fullmatch(r"[\w][\w. -]{0,99}", name):
        raise ValueError(f"{name!r} is no name; take letters, digits and . _ - alone")
    return name


def _alias(alias: str) -> str:
    if not re.fullmatch(r"[A-Za-z_-][\w-]{0,99}", alias) or re.fullmatch(r"latest|v\d+", alias):
        raise ValueError(f"{alias!r} is no alias; take letters, digits and _ -, no version")
    return alias


# Names and aliases that MLflow's registry and its URIs accept.
ModelName = Annotated[str, AfterValidator(_model_name)]
Alias = Annotated[str, AfterValidator(_alias)]


def _degradations(texts: tuple[str, ...] | None) -> tuple[str, ...] | None:
    from manifpt.images.degrade import Degradation  # not needed for --help

    for text in texts or ():
        Degradation.parse(text)
    return texts


def _degrade(texts: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return texts if texts in (None, NO_COPIES) else _ranges(texts)


def _ranges(texts: tuple[str, ...]) -> tuple[str, ...]:
    from manifpt.images.degrade import StrengthRange

    for text in texts:
        StrengthRange.parse(text)
    return texts


# Notations of images.degrade: jpeg:75, or jpeg:50-95.
Degradations = Annotated[tuple[str, ...], AfterValidator(_degradations)]
OptionalDegradations = Annotated[tuple[str, ...] | None, AfterValidator(_degradations)]
Ranges = Annotated[tuple[str, ...], AfterValidator(_ranges)]
NO_COPIES = ("none",)
OptionalRanges = Annotated[tuple[str, ...] | None, AfterValidator(_degrade)]


class ProjectionConfig(ProjectionOptions, JobConfig):
    """The options of jobs that project images onto a manifold."""


Config = TypeVar("Config", bound=JobConfig)

# Other spellings of a flag, by field.
ALSO = {"output": ("--out",)}
# Given to a field, it is an argument by its place, not by a flag.
POSITIONAL: dict[str, JsonValue] = {"positional": True}
# Given to a field, only the file that --config names can hold it.
IN_FILE: dict[str, JsonValue] = {"in_file": True}


# The parts of --help, by fields; a field in none of them is the job's own.
PARTS = {
    "inputs": {
        *("input", "real", "reals", "generated", "benchmark", "model", "manifold", "artifacts"),
        *("models", "add", "sources", "split", "evaluation", "moved"),
        *InputOptions.model_fields,
    },
    "this job": set[str](),
    "resources": {
        *("num_actors", "num_gpus_per_actor", "num_workers", "num_cpus", "compile", "threads"),
        *("search", "placement", "manifold_memory", "gpu_float16", "max_concurrent_trials"),
        *("max_cpus", "max_gpus", "max_cost", "price_cpu_hour", "price_gpu_hour"),
    },
    "all jobs": {"config", "json_file", "overwrite", "take_over"},
}


class _Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting, so that a caller sees one kind of error."""
        word = message.partition("unrecognized arguments: ")[2].partition(" ")[0]
        flags = [flag for action in self._actions for flag in action.option_strings]
        close = difflib.get_close_matches(word, flags, 1)
        remedy = ""
        if close:
            remedy = f"did you mean {close[0]}? "
        elif word and not word.startswith("-") and "--input" in flags:
            remedy = "inputs follow --input; "
        raise ManifptError(f"{message}; {remedy}see --help")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _kind(annotation: Any) -> Any:
    """Take the None out of ``X | None``."""
    if get_origin(annotation) in (types.UnionType, Union):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return kinds[0]
    return annotation


def _add(parser: argparse._ArgumentGroup, name: str, field: Any) -> None:
    kind = _kind(field.annotation)
    if field.json_schema_extra == IN_FILE:
        return
    if field.json_schema_extra == POSITIONAL:
        count = "*" if get_origin(kind) is tuple else "?"
        parser.add_argument(name, nargs=count, default=argparse.SUPPRESS, help=field.description)
        return
    default = "required" if field.is_required() else f"default: {_shown(field.default)}"
    options: dict[str, Any] = {
        "dest": field.alias or name,
        "default": argparse.SUPPRESS,
        "help": f"{field.description} ({default})".replace("%", "%%"),
    }
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif get_origin(kind) is tuple:
        count = "+" if field.is_required() else "*"
        metavar = "NAME=URI" if name in ("input", "add") else name.upper()
        options |= {"nargs": count, "metavar": metavar}
    elif get_origin(kind) is Literal:
        options["choices"] = get_args(kind)
    else:
        options["metavar"] = name.upper()
    parser.add_argument(_flag(field.alias or name), *ALSO.get(name, ()), **options)


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or "none"
    return str(default)


def _from_file(path: str) -> dict[str, object]:
    try:
        loaded = yaml.safe_load(Path(shipped(path)).read_text())
    except OSError as error:
        raise ManifptError(f"--config {path}: {error.strerror}; check the path") from None
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise ManifptError(f"--config {path}: not valid YAML ({reason})") from None
    if not isinstance(loaded, dict):
        raise ManifptError(f"--config {path}: must hold options as 'name: value' lines")
    return {str(key).replace("-", "_"): value for key, value in loaded.items()}


def _parser(kind: type[JobConfig], description: str) -> _Parser:
    """Return the parser of a job's flags, in parts; a job's own come before the shared ones."""
    command = f"manifpt {kind.__module__.rpartition('.')[2]}"
    places = [n.upper() for n, f in kind.model_fields.items() if f.json_schema_extra == POSITIONAL]
    parser = _Parser(
        prog=command,
        usage=" ".join([command, *places, "[OPTIONS]"]),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    groups = {part: parser.add_argument_group(part) for part in PARTS}
    for name in sorted(kind.model_fields, key=lambda name: name not in kind.__annotations__):
        part = next((part for part, names in PARTS.items() if name in names), "this job")
        _add(groups[part], name, kind.model_fields[name])
    return parser


def parse(kind: type[Config], description: str, argv: Sequence[str] | None = None) -> Config:
    """Return the config that flags and file give; raise ManifptError naming a wrong option."""
    argv = sys.argv[1:] if argv is None else list(argv)
    flags = vars(_parser(kind, description).parse_args(argv))
    values = {**(_from_file(flags["config"]) if "config" in flags else {}), **flags}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        option = _flag(str(first["loc"][0])) if first["loc"] else "options"
        option += "".join(f".{part}" for part in first["loc"][1:])
        reason = re.sub(r"^Value error, ", "", first["msg"])
        if first["type"] == "missing":
            reason = "is required"
        elif first["type"] == "extra_forbidden":
            reason = "no such option"
        raise ManifptError(f"{option}: {reason}; see --help") from None
