"""A study: Ray Tune over trials, with Optuna; it goes on where it was and ends within its budget.

A start of the same command tells Optuna how earlier trials ended, takes up first what was
interrupted, and repeats nothing that has ended.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from ray import tune

from manifpt import session, storage
from manifpt.errors import ManifptError
from manifpt.tracking import Run
from tuning.cache import Cache, Images
from tuning.journal import FINISHED, STOPPED, Budget, Journal, Recorder
from tuning.space import Choice
from tuning.trial import ACCURACY, Sweep, Trial

TUNE = {
    # A leg that runs when the study ends gets so long to come to its end.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "600",
    # No tables beside ours, and no files.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A stop is ours to handle.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
# Of a trial itself, in bytes: its workers and pipelines take their own.
NEXT_TO_NOTHING = {"memory": 1}
# What a population may change in a training that goes on.
MUTABLE = ("learning_rate", "weight_decay")


@dataclass(frozen=True)
class Plan:
    """How to search: the sampler, the budget, and what is to be best."""

    sampler: str = "optuna"
    trials: int = 20
    hours: float | None = None
    target: float | None = None
    objectives: tuple[str, ...] = (ACCURACY,)
    rungs: tuple[int, ...] = ()
    reduction: int = 3
    concurrent: int = 1
    seed: int = 0


def capacity_of_trials(
    num_workers: int | None, most: int | None
) -> tuple[int, dict[str, float], int]:
    """Return the workers of a trial, what it takes of the cluster, and how many run at once.

    A trial trains with its workers beside a reader; it has several where four trials still fit.
    """
    has = session.capacity()
    cpus, gpus = has.get("CPU", 1.0), has.get("GPU", 0.0)
    count = num_workers or (1 if gpus >= 1 else max(1, min(4, int(cpus / 4) - 1)))
    share = {"CPU": min(cpus, count + 1.0)} | ({"GPU": float(count)} if gpus >= 1 else {})
    fit = int(min(cpus / share["CPU"], gpus / count if gpus >= 1 else cpus))
    if fit < 1 or count + 1 > max(cpus, 2):
        raise ManifptError(
            f"--num-workers {count}: a trial needs {count + 1} CPUs, a reader's with them, and the "
            f"cluster has {cpus:g} CPU and {gpus:g} GPU; ask for fewer"
        )
    return count, share, min(fit, most or fit)


def storage_of(sweep: Sweep, plan: Plan, results: Sequence[dict[str, Any]]) -> Any:
    """Return Optuna's storage with a study named ``sweep`` that knows the results."""
    held = optuna.storages.InMemoryStorage()
    study = optuna.create_study(
        storage=held, study_name="sweep", directions=["maximize" for _ in plan.objectives]
    )
    for result in results:
        values = [float(result[name]) for name in plan.objectives if name in result]
        ended = result["status"] in {FINISHED, STOPPED} and len(values) == len(plan.objectives)
        active = sweep.space.active(result["chosen"])
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.COMPLETE if ended else optuna.trial.TrialState.FAIL,
                values=values if ended else None,
                params=result["chosen"],
                distributions={n: c.distribution for n, c in active.items()},
            )
        )
    return held


def _searcher(sweep: Sweep, plan: Plan, journal: Journal, results: Sequence[Any]) -> Any:
    """Return what proposes trials, the interrupted ones and the defaults first."""
    from ray.tune.search.optuna import OptunaSearch

    first = [] if results else [sweep.space.first()]
    if plan.sampler == "grid":
        done = [result["chosen"] for result in results]
        first = [chosen for chosen in sweep.space.grid() if chosen not in done]
    begun = [chosen for chosen in journal.interrupted() if chosen not in first]
    tpe = plan.sampler == "optuna"
    sampler = optuna.samplers.TPESampler if tpe else optuna.samplers.RandomSampler
    return OptunaSearch(
        space=sweep.space.suggest,
        metric=list(plan.objectives) if len(plan.objectives) > 1 else plan.objectives[0],
        mode=["max"] * len(plan.objectives) if len(plan.objectives) > 1 else "max",
        points_to_evaluate=begun + first,
        # After a restart, others than those that were proposed before.
        sampler=sampler(seed=plan.seed + len(results)),
        storage=storage_of(sweep, plan, results),
        study_name="sweep",
    )


def _scheduler(sweep: Sweep, plan: Plan) -> Any:
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
    from ray.tune.schedulers.pbt import PopulationBasedTraining

    if plan.sampler == "pbt":
        return PopulationBasedTraining(
            time_attr="training_iteration",
            metric=ACCURACY,
            mode="max",
            perturbation_interval=1,
            hyperparam_mutations=mutations(sweep),
        )
    if len(plan.objectives) > 1 or not plan.rungs:
        return FIFOScheduler()
    most = len(sweep.seeds) if len(sweep.seeds) > 1 else 10**6
    return AsyncHyperBandScheduler(
        time_attr="progress",
        metric=ACCURACY,
        mode="max",
        max_t=most,
        grace_period=1 if len(sweep.seeds) > 1 else plan.rungs[0],
        reduction_factor=plan.reduction,
    )


def mutations(sweep: Sweep) -> dict[str, Any]:
    """Return the choices that a population may change, as Ray Tune's."""
    found = {n: _domain(c) for n, c in sweep.space.search.items() if n in MUTABLE}
    if not found:
        raise ManifptError(f"--sampler pbt: search {' or '.join(MUTABLE)}, which it changes")
    return found


def _domain(choice: Choice) -> Any:
    if choice.values:
        return tune.choice(list(choice.values))
    whole = isinstance(choice.low, int) and isinstance(choice.high, int)
    if whole:
        return (tune.lograndint if choice.log else tune.randint)(choice.low, choice.high)
    return (tune.loguniform if choice.log else tune.uniform)(choice.low, choice.high)


def run_study(sweep: Sweep, plan: Plan, images: Images, parent: Run) -> Journal:
    """Run trials until the budget is spent; return the journal."""
    import ray

    journal = Journal(sweep)
    results = journal.results()
    left = (len(sweep.space.grid()) if plan.sampler == "grid" else plan.trials) - len(results)
    best = max((r.get(ACCURACY, 0.0) for r in results), default=0.0)
    if left <= 0 or (plan.target is not None and best >= plan.target):
        return journal
    cache = ray.remote(num_cpus=0, max_restarts=2, max_task_retries=2)(Cache).remote(
        storage.join(sweep.output, "cache"), images, sweep.share
    )
    budget = Budget(plan.hours, plan.target)
    os.environ |= TUNE
    population = plan.sampler == "pbt"
    filesystem, path = storage.arrow_filesystem(storage.join(sweep.output, "_tune"))
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(Trial, sweep=sweep, cache=cache), NEXT_TO_NOTHING),
        param_space={n: _domain(c) for n, c in sweep.space.search.items()} if population else {},
        tune_config=tune.TuneConfig(
            num_samples=left,
            max_concurrent_trials=plan.concurrent,
            search_alg=None if population else _searcher(sweep, plan, journal, results),
            scheduler=_scheduler(sweep, plan),
            reuse_actors=False,
        ),
        run_config=tune.RunConfig(
            name=str(len(results)) + f"-{time.time():.0f}",
            storage_path=path,
            storage_filesystem=filesystem,
            callbacks=[Recorder(journal, parent, budget)],
            stop=budget,
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    )
    tuner.fit()
    ray.kill(cache)
    session.free_placement_groups()
    storage.remove(storage.join(sweep.output, "_tune"))
    return journal
