"""The options of how a job runs: its output, processes, limits and costs, and its dry run."""

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from manifpt.cli.space_options import ProjectionOptions
from manifpt.engine.pools import Demand, SearchDemand

if TYPE_CHECKING:
    from manifpt.outputs.claims import Terms

OutputsFolder = Annotated[
    str, Field(description="folder for all outputs, local, s3://, gs:// or az://")
]


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


class ProjectionConfig(ProjectionOptions, JobConfig):
    """The options of jobs that project images onto a manifold."""


class DryRunOptions(BaseModel):
    """The options of jobs that have a dry run."""

    dry_run: bool = Field(
        False,
        description="write nothing; print the inputs, stages and processes of the job, the "
        "place of its manifolds, and the cost of the nodes at the given prices",
    )
    measurements: str | None = Field(
        None,
        description="for --dry-run of build_manifold and attribute: a file of manifpt plan "
        "--measure, from which the seconds and the cost of the job are estimated",
    )
