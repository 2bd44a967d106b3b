"""Say for every image which generator made it, how surely, and which real is nearest.

    manifpt attribute --input s3://bucket/crawl --model MODEL --output s3://bucket/verdicts
    manifpt attribute --input CRAWL --model models:/NAME@champion --output VERDICTS
    manifpt attribute ... --retry-quarantined unreadable
    manifpt attribute --status VERDICTS

Every input row ends in exactly one row of `attributions/` or `quarantine/`. Whatever is killed, the
same command goes on. `--status` reads how far a job is from its output, and needs no cluster.
With --group-by, `groups/` has a decision on each site, account or album, from the pooled evidence
of its images.
"""

import sys
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.config import JobConfig, OptionalDegradations, SearchConfig, parse
from manifpt.cli.options import DecisionOptions, DryRunOptions, InputOptions
from manifpt.images.perceptual import DISTANCE, MOST_DISTANCE
from manifpt.tracking import Run


class Config(DecisionOptions, DryRunOptions, InputOptions, SearchConfig):
    """Options of attribute."""

    input: tuple[str, ...] = Field(
        min_length=1,
        description="images: folders, tars, Parquet, tables of URIs; local, s3://, gs://; patterns",
    )
    model: str = Field(
        description="folder of train_attribution, or a registered one as models:/NAME@ALIAS"
    )
    output: str = Field(description="folder for the tables, local, s3:// or gs://")
    split: Literal["train", "validation", "test"] | None = Field(
        None, description="of images that declare a split, as a benchmark's, only these"
    )
    sources: tuple[str, ...] = Field(
        (), description="of images that declare a source, as a benchmark's, only these"
    )
    ensemble: OptionalDegradations = Field(
        None,
        description="ask degraded views of each image, too, whose disagreement lowers its "
        "probability: --ensemble alone for jpeg:75 jpeg:90 resize:0.75, or with others",
    )
    group_by: str | None = Field(
        None,
        description="judge together the images of each value of this column, or of each 'folder'",
    )
    foreign: float = Field(
        0.1, gt=0, lt=1, description="with --group-by: share of a group's images of other sources"
    )
    manifold: tuple[str, ...] = Field(
        (), description="where the attributor's manifolds lie now, if they were moved"
    )
    duplicates: bool = Field(
        True, description="tell which images are copies of others of the input (duplicates/)"
    )
    near_distance: int = Field(
        DISTANCE, ge=0, le=MOST_DISTANCE, description="bits of 64 in which near duplicates differ"
    )
    retry_quarantined: tuple[str, ...] | None = Field(
        None,
        description="of a finished output, try these rows again: of the error codes given, or all",
    )


class Status(JobConfig):
    """Options of attribute --status."""

    status: str = Field(description="folder of the tables, local, s3:// or gs://")


def run(config: Config, tracked: Run) -> dict[str, Any]:
    """Attribute and return the counts."""
    from manifpt.attribution.crawl.attribute import attribute, check_any
    from manifpt.attribution.crawl.ensemble import views_of
    from manifpt.attribution.crawl.settings import Settings

    settings = Settings(
        split=config.split,
        sources=config.sources,
        reading=config.reading,
        duplicates=config.duplicates,
        near_distance=config.near_distance,
        rule=config.rule,
        views=() if config.ensemble is None else views_of(config.ensemble),
        group_by=config.group_by,
        foreign=config.foreign,
    )
    summary = attribute(
        config.input,
        config.model,
        config.output,
        settings,
        manifolds=config.manifold,
        search=config.search_demand,
        demand=config.demand,
        terms=config.terms,
        retry=config.retry_quarantined,
    )
    tracked.inputs(summary["inputs"], "attribute")
    check_any(summary, config.output)
    return {"output": config.output, **summary}


def show(argv: Sequence[str]) -> None:
    """Print how far the job of an output is, from storage alone."""
    from manifpt import storage
    from manifpt.engine import progress

    config = parse(Status, __doc__, argv)
    found = progress.status(config.status)
    if config.json_file:
        storage.write_json(config.json_file, found)
    print(progress.text(found))


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    given = sys.argv[1:] if argv is None else argv
    if any(flag.split("=", 1)[0] == "--status" for flag in given):
        return job.exit_code("attribute", lambda: show(given))
    return job.main("attribute", Config, run, __doc__, argv)
