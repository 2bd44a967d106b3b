"""Browse a finished output of attribute: rows by filter and order, their images and evidence.

    manifpt view VERDICTS
    manifpt view s3://bucket/verdicts --port 8080

Starts a server on this computer's loopback interface, prints its address, and ends by Ctrl-C. It
only reads. Pages come from the tables one by one, so an output may have any number of rows. An
image is read from its URI if that is in an input of the output, or in a place that --allow names.
"""

import sys
from collections.abc import Sequence

from pydantic import Field

from manifpt.cli import job
from manifpt.cli.attributor_options import MovedAttributor, MovedManifolds
from manifpt.cli.config import parse
from manifpt.cli.job_options import JobConfig
from manifpt.cli.option_types import POSITIONAL


class Config(JobConfig):
    """Options of view."""

    output: str = Field(
        description="output of attribute, local, s3://, gs:// or az://",
        json_schema_extra=POSITIONAL,
    )
    port: int = Field(0, ge=0, le=65535, description="port of the server; 0 is any free port")
    allow: tuple[str, ...] = Field(
        (),
        description="folders and buckets whose images may be shown besides those of the inputs, "
        "such as those that a table of URIs names",
    )
    model: MovedAttributor = None
    manifold: MovedManifolds = ()


def show(argv: Sequence[str]) -> None:
    """Serve the pages of an output until Ctrl-C."""
    config = parse(Config, __doc__, argv)
    from manifpt import storage
    from manifpt.viewer.output import CrawlOutput
    from manifpt.viewer.web_server import application, serve

    crawl = CrawlOutput.open(config.output, config.model, config.manifold)

    def ready(address: str) -> None:
        if config.json_file:
            storage.write_json(config.json_file, {"output": crawl.uri, "address": address})
        print(f"{address} shows {config.output}; Ctrl-C ends it", file=sys.stderr, flush=True)

    serve(application(crawl, config.allow), config.port, ready)


def main(argv: list[str] | None = None) -> int:
    """Run the job as a command."""
    given = sys.argv[1:] if argv is None else argv
    return job.exit_code("view", lambda: show(given))
