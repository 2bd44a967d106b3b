"""Add generators to a trained attributor, from about fifty images each.

    manifpt extend MODEL --add newgan=fifty-images/ --output MODEL-2

The trunks of the networks, the manifolds and the projections stay as they are. The last layers are
fitted anew to the old training images and the new ones, and so are the weights of the heads and the
calibration. The artifacts of the old training must be where they were. The files of the new images
are audited first: if a property of them, such as the format, reveals the new classes, the job ends
with exit code 3, unless --accept-biased is given (see `manifpt audit`).
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.attributor_options import MovedManifolds
from manifpt.cli.input_options import LabelOptions, SplitOptions
from manifpt.cli.job_options import DryRunOptions, JobConfig
from manifpt.cli.option_types import POSITIONAL
from manifpt.cli.training_options import AuditOptions
from manifpt.jobs.new_attributor import NewAttributorOptions, check_registry, finish
from manifpt.tracking import Run


class Config(
    AuditOptions, NewAttributorOptions, DryRunOptions, LabelOptions, SplitOptions, JobConfig
):
    """Options of extend."""

    model: str = Field(description="attributor of train_attribution", json_schema_extra=POSITIONAL)
    add: tuple[str, ...] = Field(description="images of new sources, NAME=URI")
    head: Literal["linear", "lda"] = Field(
        "lda",
        description="how the last layers are fitted: by logistic regression (linear) or "
        "discriminant analysis (lda)",
    )
    manifold: MovedManifolds = ()


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Extend the attributor and return the result on the validation split."""
    from manifpt.artifacts.compute import ArtifactRecipe
    from manifpt.attribution.model.extend import extend_attributor

    check_registry(config, tracked)
    recipe = ArtifactRecipe(
        manifolds=config.manifold, split_by=config.split_by, labels=config.labels
    )
    manifest = extend_attributor(
        config.model,
        config.add,
        config.output,
        head=config.head,
        recipe=recipe,
        audit=config.audit,
        demand=config.demand,
        terms=config.terms,
    )
    return finish(config, manifest, tracked)


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("extend", Config, run, __doc__, argv)
