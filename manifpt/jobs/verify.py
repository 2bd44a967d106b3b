"""Compute random rows of artifacts again by brute force, from the original images.

    manifpt verify MANIFOLD ARTIFACTS --rows 200

Writes ARTIFACTS/certificate.json; exit code 1 if anything differs.
"""

from collections.abc import Mapping

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.job_options import JobConfig
from manifpt.cli.option_types import POSITIONAL
from manifpt.errors import MismatchError
from manifpt.tracking import Run


class Config(JobConfig):
    """Options of verify."""

    manifold: str = Field(description="folder of build_manifold", json_schema_extra=POSITIONAL)
    artifacts: str = Field(description="folder of compute_artifacts", json_schema_extra=POSITIONAL)
    rows: int = Field(200, ge=1, description="number of rows to check")
    seed: int = Field(0, ge=0, description="seed of the choice of rows")


def run(config: Config, tracked: Run) -> Mapping[str, object]:
    """Verify and return the counts; a difference raises after the certificate is written."""
    from manifpt.artifacts.verification import verify

    found = verify(config.manifold, config.artifacts, config.rows, config.seed)
    tracked.document("certificate.json", found)
    if found["mismatches"]:
        first = found["what"][0]
        raise MismatchError(
            f"{found['mismatches']} mismatches; the first: {first['id']}: {first['what']}"
        )
    return {**found}


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    return job.main("verify", Config, run, __doc__, argv)
