"""The end of a sweep: the best trial and the defaults on test images, which no trial has seen."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from manifpt import storage
from manifpt.attribution.model.trained import TrainedAttributor
from manifpt.errors import ManifptError
from manifpt.evaluation.evaluate import evaluate
from manifpt.tracking import Run
from manifpt.tracking.server import command_of_pages
from manifpt.tuning import study_report
from manifpt.tuning.journal import FINISHED
from manifpt.tuning.proposals import SweepPlan
from manifpt.tuning.trial import Sweep
from manifpt.tuning.trial_format import EndedTrial, TestedTrial


def conclude(
    sweep: Sweep, plan: SweepPlan, results: Sequence[EndedTrial], tracked: Run
) -> Mapping[str, object]:
    """Print and log the leaderboard; evaluate the best trial and the defaults once; return both."""
    table = study_report.leaderboard(results, plan)
    finished = [r for r in study_report.ranked_trials(results) if r["status"] == FINISHED]
    if not finished:
        errors = [r["error"].splitlines()[-1] for r in results if "error" in r]
        raise ManifptError(f"no trial has finished: {errors[0] if errors else 'give more --hours'}")
    best = finished[0]
    first = next((r for r in finished if r["chosen"] == sweep.space.first()), None)
    test = {"best": tested(sweep, best)}
    if first:
        test["defaults"] = tested(sweep, first)
    weights = study_report.importances(sweep, plan, results)
    print(f"\n{table}\n")
    if weights:
        print("importance: " + ", ".join(f"{n} {v:.2f}" for n, v in weights.items()))
    for name, row in test.items():
        print(f"test images, {name}: {row['accuracy']:.3f} ({row['low']:.3f}-{row['high']:.3f})")
    print(f"best attributor: {best['attributor']}")
    print(f"runs: {command_of_pages()}\n", flush=True)
    _log(sweep, results, table, weights, best, tracked)
    storage.write_json(
        storage.join(sweep.output, "leaderboard.json"), study_report.ranked_trials(results)
    )
    return {
        "output": sweep.output,
        "trials": len(results),
        "best": best["key"],
        "attributor": best["attributor"],
        "validation_accuracy": best["accuracy"],
        **{f"test_{name}": row for name, row in test.items()},
        **{f"test_accuracy_{name}": row["accuracy"] for name, row in test.items()},
        "choices": best["chosen"],
        "importance": weights,
    }


def tested(sweep: Sweep, result: EndedTrial) -> TestedTrial:
    """Return a trial's accuracy on test images: with its interval, or the spread of its seeds."""
    last = result["attributor"]
    models = [last]
    if len(sweep.seeds) > 1:
        models = [storage.join(last.rpartition("/")[0], f"seed{seed}") for seed in sweep.seeds]
    found = []
    for model in models:
        artifacts = TrainedAttributor.open(model).manifest["artifacts"]
        found.append(evaluate(artifacts, model, f"{model}-test"))
    several = len(found) > 1
    return {
        "accuracy": fmean(m["accuracy"] for m in found),
        "low": min(m["accuracy" if several else "accuracy_low"] for m in found),
        "high": max(m["accuracy" if several else "accuracy_high"] for m in found),
        "chance": found[0]["chance"],
    }


def _log(
    sweep: Sweep,
    results: Sequence[EndedTrial],
    table: str,
    weights: dict[str, float],
    best: EndedTrial,
    tracked: Run,
) -> None:
    """Log the results to the sweep's run, and tag the best trial's."""
    tracked.bytes("leaderboard.txt", table.encode())
    tracked.document("leaderboard.json", study_report.ranked_trials(results))
    tracked.document("importance.json", weights)
    picture = study_report.parallel_coordinates(sweep, results)
    if picture:
        tracked.bytes("parallel_coordinates.png", picture)
    tracked.tags({"best_trial": best["key"], "best_run": best["run"]})
    if best["run"]:  # MLflow did not answer when the trial began
        tracked.other(best["run"]).tags({"best": "true"})
