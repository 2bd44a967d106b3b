"""A plan as text and as JSON values."""

from collections.abc import Sequence

from manifpt.planning.cluster import Cluster, Prices
from manifpt.planning.model import JobPlan


def size(count: float) -> str:
    """Return bytes in a unit that suits them."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"


def duration(seconds: float) -> str:
    """Return seconds in a unit that suits them."""
    for limit, divisor, unit in ((180, 1, "s"), (10_800, 60, "min"), (259_200, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.3g} {unit}"
    return f"{seconds / 86400:.4g} days"


def plan_row(plan: JobPlan, cluster: Cluster, prices: Prices) -> dict[str, object]:
    """Return a plan's figures as JSON values."""
    return {
        "job": plan.job,
        "workers": plan.workers,
        "images": plan.images,
        "placement": plan.placement,
        "seconds": plan.seconds,
        "parts": plan.parts,
        "limits": plan.limits,
        "bottleneck": plan.bottleneck,
        "cpu_hours": sum(stage.cpu for stage in plan.stages) / 3600,
        "gpu_hours": sum(stage.gpu for stage in plan.stages) / 3600,
        "bytes_read": sum(stage.read for stage in plan.stages),
        "bytes_written": sum(stage.written for stage in plan.stages),
        "requests_that_write": plan.writes,
        "requests_that_read": plan.reads,
        "cost": _cost(plan, cluster, prices),
        "stages": [vars(stage) for stage in plan.stages],
    }


def _cost(plan: JobPlan, cluster: Cluster, prices: Prices) -> dict[str, float]:
    """Return the cost of a plan by part, empty without prices."""
    stored = sum(stage.written for stage in plan.stages if stage.where == "actor")
    return prices.of(cluster, plan.seconds, stored, plan.writes, plan.reads)


def plan_text(plans: Sequence[JobPlan], cluster: Cluster, prices: Prices) -> str:
    """Return the plans of one job for several numbers of workers, as a table of its stages.

    Stages are those of the first plan: they do not depend on the number of workers, except for the
    bytes of the manifold that each reads.
    """
    first = plans[0]
    lines = [
        f"{first.job}: {first.images:,} images",
        f"{'stage':<12}{'where':<9}{'core-hours':>12}{'GPU-hours':>12}{'read':>10}{'written':>10}",
    ]
    lines += [
        f"{s.name:<12}{s.where:<9}{s.cpu / 3600:>12.4g}{s.gpu / 3600:>12.4g}"
        f"{size(s.read):>10}{size(s.written):>10}"
        for s in first.stages
    ]
    lines.append(f"{'workers':<9}{'wall time':>11}  {'placement':<14}{'bottleneck':<20}parts")
    for plan in plans:
        parts = ", ".join(f"{name} {duration(s)}" for name, s in plan.parts.items())
        lines.append(
            f"{plan.workers:<9}{duration(plan.seconds):>11}  {plan.placement:<14.13}"
            f"{plan.bottleneck:<20}{parts}"
        )
        if cost := _cost(plan, cluster, prices):
            costs = ", ".join(f"{name} {value:,.2f}" for name, value in cost.items())
            lines.append(f"{'':<9}cost: {sum(cost.values()):,.2f} ({costs})")
    lines.append(f"requests: {first.writes:,.0f} that write, {first.reads:,.0f} that read")
    return "\n".join(lines)
