"""The end of the jobs that make an attributor: it is logged, registered if asked, and summed up."""

import sys
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from manifpt.cli.option_types import Alias, ModelName
from manifpt.tracking import Run


class NewAttributorOptions(BaseModel):
    """The options of jobs that make an attributor: its folder, and its name in the registry."""

    output: str = Field(description="folder for the attributor, local, s3://, gs:// or az://")
    register_as: ModelName | None = Field(
        None,
        alias="register",
        description="name under which the attributor is put in MLflow's model registry",
    )
    alias: Alias = Field("champion", description="with --register: alias of the new version")


def check_registry(options: NewAttributorOptions, tracked: Run) -> None:
    """Raise, before the work, if the attributor shall be registered and no run can hold it."""
    if options.register_as is not None:
        tracked.require()


def finish(
    options: NewAttributorOptions, manifest: Mapping[str, Any], tracked: Run
) -> Mapping[str, object]:
    """Log a finished attributor, register it if asked to; return its summary."""
    from manifpt.registry.register import log_model, register

    output = options.output
    tracked.document("manifest.json", manifest)
    names = ("classes", "network", "best_epoch", "validation_accuracy", "validation_loss")
    summary = {"output": output, **{n: manifest[n] for n in names if n in manifest}}
    if manifest.get("audit"):
        summary["audit"] = manifest["audit"]["verdict"]
    heads = zip(manifest.get("heads", []), manifest["weights"], strict=False)
    weights = "; ".join(f"{name} {weight:.2f}" for name, weight in heads)
    print(f"weights of the heads: {weights}", file=sys.stderr, flush=True)
    degraded = manifest.get("validation_accuracy_by_degradation", {})
    if len(degraded) > 1:
        accuracies = ", ".join(f"{kind} {share:.3f}" for kind, share in degraded.items())
        print(f"validation accuracy: {accuracies}", file=sys.stderr, flush=True)
    if options.register_as is not None:
        logged = log_model(output, tracked.require(), manifold="auto")
        return {**summary, **register(logged, options.register_as, options.alias)}
    tracked.model(output)
    return summary
