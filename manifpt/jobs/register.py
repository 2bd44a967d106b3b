"""Put a finished attributor in MLflow's model registry, with a card, to be served and used by name.

    manifpt register --model ATTRIBUTOR --name NAME --evaluation EVALUATION
    mlflow models serve -m models:/NAME@champion --env-manager local
    manifpt attribute --input IMAGES --model models:/NAME@champion --output VERDICTS

The alias moves to the new version; older ones stay. Small manifolds come with the model.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.attributor_options import MovedManifolds
from manifpt.cli.job_options import JobConfig
from manifpt.cli.option_types import Alias, ModelName
from manifpt.tracking import Run


class Config(JobConfig):
    """Options of register."""

    model: str = Field(description="folder of train_attribution")
    name: ModelName = Field(
        description="name in the registry; an existing model gets a new version"
    )
    alias: Alias = Field(
        "champion", description="alias of this version; it is removed from the version that had it"
    )
    evaluation: str | None = Field(
        None, description="output of evaluate, whose metrics are shown on the card"
    )
    manifold: Literal["auto", "reference", "include"] = Field(
        "auto",
        description="include copies the manifolds into the model; reference stores only their "
        "URIs and hashes; auto includes them up to 256 MiB",
    )
    moved: MovedManifolds = ()


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Register; return the name of the version."""
    from manifpt.registry.register import log_model, register

    logged = log_model(
        config.model,
        tracked.require(),
        manifold=config.manifold,
        moved=config.moved,
        evaluation=config.evaluation,
    )
    return register(logged, config.name, config.alias)


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("register", Config, run, __doc__, argv, on_ray=False)
