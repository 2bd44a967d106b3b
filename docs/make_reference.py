"""Write docs/reference.md from the code: jobs and their options, quarantine codes, tables.

python docs/make_reference.py
"""

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from manifpt.__main__ import STAGES, module_of
from manifpt.artifacts.artifact_stage import ARTIFACTS
from manifpt.attribution.crawl.duplicates import DUPLICATES
from manifpt.attribution.crawl.grouping import GROUP_ROWS
from manifpt.attribution.crawl.leaks import LEAKS
from manifpt.attribution.crawl.stage import AGREEMENT, ATTRIBUTIONS
from manifpt.attribution.model.tiled import TILED
from manifpt.cli import (
    attributor_options,
    input_options,
    job_options,
    option_types,
    space_options,
    training_options,
)
from manifpt.images.decode import ERRORS
from manifpt.jobs.chain import ChainConfig
from manifpt.spaces import SPACES

PAGE = Path(__file__).with_name("reference.md")
# Groups of options that several jobs have, and their headings.
SHARED: dict[type[BaseModel], str] = {
    job_options.JobConfig: "Every job",
    job_options.EmbeddingConfig: "Embedding",
    job_options.SearchConfig: "Search",
    space_options.SpaceOptions: "Spaces and metric",
    space_options.NetworkOptions: "Network of a learned space",
    space_options.ProjectionOptions: "Projection",
    space_options.PlainOptions: "Spaces without a manifold",
    input_options.InputOptions: "Reading",
    input_options.LabelOptions: "Columns of sources and splits",
    input_options.SplitOptions: "Splits",
    training_options.TrainingOptions: "Training",
    attributor_options.DecisionOptions: "Decision",
    job_options.DryRunOptions: "Dry run",
    ChainConfig: "Chain of jobs",
}
TABLES: dict[str, Mapping[str, Any]] = {
    "Artifacts, beside `artifact` itself": ARTIFACTS,
    "`attributions/`": ATTRIBUTIONS | dict.fromkeys(LEAKS, "bool"),
    "`attributions/` with `--ensemble`, also": AGREEMENT,
    "`attributions/` of native tiles, also": TILED,
    "`groups/`": GROUP_ROWS,
    "`duplicates/`": DUPLICATES,
}
HEAD = """# Reference

This page is generated from the code by `make reference`.

`manifpt JOB` runs a job. In a checkout and on a cluster, `python -m jobs.JOB` is the same command,
and for sweeps `python -m tuning.sweep`. Options come from flags, from a YAML file with the same
names (`--config job.yaml`), or from both; flags win. `--json FILE` writes the summary of a job. A
finished job that is run again does nothing; an interrupted one does the missing part. Exit codes:

| code | meaning |
|---|---|
| 0 | done |
| 1 | `verify` found a difference |
| 2 | an error that you can fix; one line says how |
| 3 | the verdict of `audit`, or of the audit before a training, is fail |
| 130 | stopped |
"""


def cell(text: object) -> str:
    """Return text for a cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def table(head: Sequence[str], rows: Iterator[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(cell, row))} |" for row in lines)


def default_of(field: FieldInfo) -> str:
    """Return a default as a user would type it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ((), {}):
        return ""
    if isinstance(value, tuple):
        return f"`{' '.join(map(str, value))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def choices_of(annotation: Any) -> tuple[str, ...]:
    """Return the values of a Literal, alone or inside another type."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(value for part in get_args(annotation) for value in choices_of(part))


def option_row(name: str, field: FieldInfo) -> tuple[str, str, str]:
    """Return an option's name, default and meaning."""
    flag = "--" + (field.alias or name).replace("_", "-")
    if field.json_schema_extra == option_types.POSITIONAL:
        flag = name.upper()
    elif field.json_schema_extra == option_types.IN_FILE:
        flag = f"{name} (file only)"
    elif field.default is True:
        flag = f"--[no-]{name.replace('_', '-')}"
    choices = choices_of(field.annotation)
    meaning = field.description or "see the how-to of sweeps"
    also = f" ({', '.join(f'`{c}`' for c in choices)})" if choices else ""
    return f"`{flag}`", default_of(field), meaning + also


def options_table(kind: type[BaseModel]) -> str:
    """Return the options that a class itself declares."""
    rows = (option_row(name, kind.model_fields[name]) for name in own_options(kind))
    return table(("option", "default", "meaning"), rows)


def own_options(kind: type[BaseModel]) -> list[str]:
    """Return the names of the options that a class itself declares."""
    return [name for name in inspect.get_annotations(kind) if name in kind.model_fields]


def description(module: ModuleType) -> str:
    """Return a job's docstring, its commands as code."""
    lines = inspect.cleandoc(module.__doc__ or "").splitlines()
    return "\n".join(re.sub(r"(?<=\S) {2,}", " ", line) for line in lines)


def job_section(name: str) -> str:
    """Return the description of a job, its own options, and links to those that it shares."""
    module = importlib.import_module(module_of(name))
    shared = [title for kind, title in SHARED.items() if kind in module.Config.__mro__]
    links = ", ".join(f"[{title}](#{anchor(title)})" for title in shared)
    parts = [f"### {name}", description(module), options_table(module.Config), f"Also: {links}."]
    return "\n\n".join(parts)


def anchor(title: str) -> str:
    """Return the anchor of a heading."""
    return title.lower().replace(" ", "-").replace(".", "")


def text() -> str:
    """Return the page."""
    rows = (
        (group, ", ".join(f"[{name}](#{anchor(name)})" for name in names))
        for group, names in STAGES.items()
    )
    parts = [HEAD, "## Jobs", table(("stage", "jobs"), rows)]
    parts += [job_section(name) for names in STAGES.values() for name in names]
    parts.append("## Shared options")
    parts += [f"### {title}\n\n{options_table(kind)}" for kind, title in SHARED.items()]
    parts.append("Spaces: " + ", ".join(f"`{name}`" for name in SPACES) + ".")
    parts += [
        "## Quarantine",
        table(("code", "meaning"), ((f"`{code}`", why) for code, why in ERRORS.items())),
    ]
    parts.append("## Tables")
    for title, columns in TABLES.items():
        rows = ((f"`{name}`", f"`{kind}`") for name, kind in columns.items())
        parts.append(f"### {title}\n\n{table(('column', 'type'), rows)}")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(text())
