"""Flags, a YAML file, or both -> the options of a job, which one frozen model declares."""

import argparse
import difflib
import re
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import ValidationError

from manifpt.cli.input_options import InputOptions
from manifpt.cli.job_options import JobConfig
from manifpt.cli.option_types import IN_FILE, POSITIONAL
from manifpt.cli.shipped import shipped
from manifpt.errors import ManifptError

Config = TypeVar("Config", bound=JobConfig)

# Other spellings of a flag, by field.
ALSO = {"output": ("--out",)}

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
