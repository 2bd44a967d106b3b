"""Combine trained attributors of one space each by late fusion, without another training.

    manifpt fuse MODEL-RGB MODEL-SL --output MODEL

The attributors tell the same classes apart, and were trained on artifacts of the same images. Their
networks stay as they are. The weight of each head is fitted on the validation images.
"""

from collections.abc import Mapping

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.job_options import JobConfig
from manifpt.cli.option_types import POSITIONAL
from manifpt.jobs.new_attributor import NewAttributorOptions, check_registry, finish
from manifpt.tracking import Run


class Config(NewAttributorOptions, JobConfig):
    """Options of fuse."""

    models: tuple[str, ...] = Field(
        description="attributors of train_attribution, two or more", json_schema_extra=POSITIONAL
    )


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Fuse the attributors and return the result on the validation split."""
    from manifpt.attribution.model.members import fuse_attributors

    check_registry(config, tracked)
    manifest = fuse_attributors(
        config.models, config.output, demand=config.demand, terms=config.terms
    )
    return finish(config, manifest, tracked)


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("fuse", Config, run, __doc__, argv)
