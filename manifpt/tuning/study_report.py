"""The report of a study: the leaderboard, the Pareto front, importances, and a picture."""

import io
from collections.abc import Sequence

import optuna

from manifpt.tuning.journal import FINISHED, choices_text
from manifpt.tuning.proposals import SweepPlan, storage_of
from manifpt.tuning.trial import ACCURACY, Sweep
from manifpt.tuning.trial_format import EndedTrial, Objective

LEAST = 4  # trials that importances and their picture need


def ranked_trials(results: Sequence[EndedTrial]) -> list[EndedTrial]:
    """Return the trials by accuracy, then by loss; those that have not finished come last."""
    return sorted(
        results,
        key=lambda r: (
            r["status"] != FINISHED,
            -r.get(ACCURACY, 0.0),
            r.get("loss", float("inf")),
        ),
    )


def pareto(results: Sequence[EndedTrial], objectives: Sequence[Objective]) -> set[str]:
    """Return the keys of the finished trials that no other beats in all objectives."""
    rows = [(r["key"], [r[n] for n in objectives]) for r in results if r["status"] == FINISHED]

    def beaten(mine: list[float]) -> bool:
        return any(
            other != mine and all(o >= m for o, m in zip(other, mine, strict=True))
            for _, other in rows
        )

    return {key for key, mine in rows if not beaten(mine)}


def leaderboard(results: Sequence[EndedTrial], plan: SweepPlan) -> str:
    """Return the trials as a table; with several objectives, a star marks the Pareto front."""
    several = len(plan.objectives) > 1
    front = pareto(results, plan.objectives) if several else set()
    head = "trial          accuracy  loss    " + ("images/s  " if several else "")
    lines = [head + "epochs  seconds  status    choices"]
    for r in ranked_trials(results):
        name = r["key"] + ("*" if r["key"] in front else "")
        rate = f"{r.get('images_per_second', 0):<10.0f}" if several else ""
        lines.append(
            f"{name:<15}{r.get(ACCURACY, 0):<10.3f}{r.get('loss', 0):<8.3f}{rate}"
            f"{r.get('epochs', 0):<8}{r.get('training_seconds', 0):<9.0f}{r['status']:<10}"
            f"{choices_text(r['chosen'])}"
        )
    return "\n".join(lines)


def importances(sweep: Sweep, plan: SweepPlan, results: Sequence[EndedTrial]) -> dict[str, float]:
    """Return the share of the accuracy's variance that each choice explains (by Optuna).

    Choices that only some trials make are left out.
    """
    study = _study(sweep, results)
    if len(study.get_trials(states=[optuna.trial.TrialState.COMPLETE])) < LEAST:
        return {}
    try:
        found = optuna.importance.get_param_importances(study)
    except (RuntimeError, ValueError):  # all trials alike
        return {}
    return {name: float(value) for name, value in found.items()}


def _study(sweep: Sweep, results: Sequence[EndedTrial]) -> optuna.Study:
    return optuna.load_study(study_name="sweep", storage=storage_of(sweep, SweepPlan(), results))


def parallel_coordinates(sweep: Sweep, results: Sequence[EndedTrial]) -> bytes | None:
    """Return a PNG of all trials, one line each through its choices; None for too few."""
    import warnings

    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    study = _study(sweep, results)
    trials = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    common = set.intersection(*(set(t.params) for t in trials)) if trials else set()
    names = [name for name in sweep.space.search if name in common]
    if len(trials) < LEAST or not names:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its pictures experimental
        axes = plot_parallel_coordinate(study, params=names, target_name=ACCURACY)
    axes.collections[0].set_cmap("viridis_r")  # Optuna's ends in white
    sink = io.BytesIO()
    plt.gcf().set_size_inches(max(6.0, 2.0 * len(names)), 5)
    plt.savefig(sink, format="png", dpi=120, bbox_inches="tight")
    plt.close("all")
    return sink.getvalue()
