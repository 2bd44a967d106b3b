"""Published methods of generator attribution as spaces, to compare with: images -> vectors."""

from manifpt.baselines.baseline import BASELINES, Baseline

__all__ = ["BASELINES", "Baseline"]
