"""Run the paper's experiments on a benchmark, and write their tables as pages.

    manifpt reproduce --output reproduction --seeds 0 1 2
    manifpt reproduce --output quick --quick
    manifpt reproduce --benchmark benchmarks/gm-mnist --output mnist --sections table2 table5

Trains and evaluates the methods of ManiFPT's tables on the same images: those that it was compared
with, later ones, its own and ours. All networks have the same number of steps, and all choices are
made on validation images. Sections: table2 (accuracy and FDR), table4 (from one data set to
another, with --other), table5 (clusters of fingerprints against design choices, and their causal
effects), theory (artifacts against precision, recall and distances of distributions), reals (number
of reals in the manifold). Finished parts are not repeated.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from manifpt import storage
from manifpt.cli import job
from manifpt.cli.shipped import shipped
from manifpt.errors import ManifptError
from manifpt.jobs.chain import ChainConfig, claimed

if TYPE_CHECKING:
    from manifpt.jobs.reproduction.methods import ComparedMethod
    from manifpt.jobs.reproduction.section import Section
    from manifpt.tracking import Run

Name = Literal["table2", "table4", "table5", "theory", "reals"]
# The values of options that --quick changes, unless they are given.
QUICK: dict[str, object] = {
    "benchmark": "benchmarks/gm-mnist",
    "sources": (),
    "steps": 60,
    "denoiser_steps": 100,
    "paper_stem": "half",
}
PAGE, SECTIONS = "reproduction.md", "sections"


class Config(ChainConfig):
    """Options of reproduce."""

    output: str = Field(description="folder for all outputs, local, s3://, gs:// or az://")
    other: Annotated[str | None, AfterValidator(lambda given: given and shipped(given))] = Field(
        None,
        description="table4: another benchmark with some of the same sources, such as "
        "benchmarks/gm-mnist",
    )
    sections: tuple[Name, ...] = Field(
        ("table2", "table4", "table5", "theory", "reals"), description="the sections to run"
    )
    methods: tuple[str, ...] = Field(
        (), description="table2, table4: only these rows, by their titles; all if empty"
    )
    steps: int = Field(2000, ge=1, description="steps of each training by gradients")
    paper_backbone: str = Field(
        "auto",
        description="network of the rows of the paper's own method: a torchvision classifier; "
        "auto is resnet50 on GPUs, else resnet18",
    )
    paper_stem: Literal["auto", "full", "half", "standard"] = Field(
        "auto", description="stem of that network, see train_attribution"
    )
    sl_network: str = Field("resnet50", description="see build_manifold")
    sl_weights: str | None = Field(
        None, description="see build_manifold; without weights there is no space sl"
    )
    ssl_weights: str | None = Field(
        None, description="see build_manifold; without weights there is no space ssl"
    )
    network_size: int | None = Field(None, ge=16, description="see build_manifold")
    quick: bool = Field(
        False,
        description="try all of it in minutes: GM-MNIST, 60 steps for each network, 100 for the "
        "denoiser; networks have then learned little",
    )

    @model_validator(mode="before")
    @classmethod
    def _quick(cls, given: Any) -> Any:
        return QUICK | given if isinstance(given, dict) and given.get("quick") else given

    @property
    def learned(self) -> tuple[str, ...]:
        """The spaces of encoders for which there are weights."""
        given = {"sl": self.sl_weights, "ssl": self.ssl_weights}
        return tuple(name for name, weights in given.items() if weights)

    @property
    def encoders(self) -> tuple[str, ...]:
        """build_manifold's options of the learned spaces."""
        options: tuple[str, ...] = ()
        if self.sl_weights:
            options += ("--sl-network", self.sl_network, "--sl-weights", self.sl_weights)
        if self.ssl_weights:
            options += ("--ssl-weights", self.ssl_weights)
        size = self.network_size
        return options + (("--network-size", str(size)) if size and options else ())


def rows_of(config: Config) -> list["ComparedMethod"]:
    """Return the rows asked for."""
    from manifpt.engine import pools
    from manifpt.jobs.reproduction.methods import chosen, methods

    backbone = config.paper_backbone
    if backbone == "auto":
        backbone = "resnet50" if pools.capacity().get("GPU", 0.0) >= 1 else "resnet18"
    paper = ("--backbone", backbone, "--stem", config.paper_stem)
    try:
        return chosen(methods(paper, config.learned), config.methods)
    except ValueError as error:
        raise ManifptError(f"--methods {error}") from None


def shared_sources(config: Config) -> tuple[str, ...]:
    """Return the sources that both benchmarks have, for any --sources."""
    from manifpt.evaluation.design_choices import read_design_choices

    assert config.other is not None
    first, second = (read_design_choices(uri)[0] for uri in (config.benchmark, config.other))
    shared = tuple(name for name in first if name in second)
    if not shared:
        raise ManifptError(f"--other {config.other}: has no recipe that --benchmark has")
    return ("real", *shared)


def run(config: Config, tracked: "Run") -> Mapping[str, object]:
    """Run the sections; write each when it is done, and return the summary."""
    with claimed(config, config.output):
        return _run(config, tracked)


def _run(config: Config, tracked: "Run") -> Mapping[str, object]:
    from manifpt.jobs.reproduction.accuracy import table_2
    from manifpt.jobs.reproduction.benchmark_study import Study
    from manifpt.jobs.reproduction.fingerprint_tables import table_5, theory
    from manifpt.jobs.reproduction.reals_curve import reals_curve
    from manifpt.jobs.reproduction.transfer import table_4

    started = time.monotonic()
    rows = rows_of(config)
    study = Study(config, config.benchmark, config.output)
    runs = {
        "table2": lambda: table_2(study, rows),
        "table5": lambda: table_5(study),
        "theory": lambda: theory(study),
        "reals": lambda: reals_curve(study),
    }
    if config.other is not None:
        shared = shared_sources(config)
        other = Study(config, config.other, storage.join(config.output, "other"), shared)
        runs["table4"] = lambda: table_4(study, other, rows, shared)
    asked = [name for name in config.sections if name in runs]
    for name in asked:
        _write(config, runs[name](), tracked)
    seconds = time.monotonic() - started
    print(f"\n{storage.read_bytes(storage.join(config.output, PAGE)).decode()}\n{seconds:.0f} s")
    return {"output": config.output, "seconds": seconds, "sections": asked}


def _write(config: Config, section: "Section", tracked: "Run") -> None:
    """Write a section, and the page of all sections, including those of earlier calls."""
    body = asdict(section) | {"settings": config.model_dump(mode="json")}
    storage.write_json(storage.join(config.output, SECTIONS, f"{section.name}.json"), body)
    parts = [f"# The paper's experiments on {config.benchmark}\n"]
    for name in get_args(Name):
        place = storage.join(config.output, SECTIONS, f"{name}.json")
        if storage.exists(place):
            found = storage.read_json(place)
            parts.append(f"## {found['title']}\n\n{found['text']}\n")
    page = "\n".join(parts).encode()
    storage.write_bytes(storage.join(config.output, PAGE), page)
    tracked.bytes(PAGE, page)
    tracked.document(f"{section.name}.json", body)


def main(argv: list[str] | None = None) -> int:
    """Run the experiments as a command."""
    return job.main("reproduce", Config, run, __doc__, argv)
