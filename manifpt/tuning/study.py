"""A study: Ray Tune over trials, which can be continued and ends within its budget.

A start of the same command gives Optuna the results of earlier trials, continues interrupted trials
first, and repeats no trial that has ended.
"""

import os
import time

from ray import tune

from manifpt import storage
from manifpt.engine import pipeline, pools, scaling, session
from manifpt.errors import ManifptError
from manifpt.tracking import Run
from manifpt.tuning.cache import Cache, SweepImages
from manifpt.tuning.journal import FINISHED, Budget, Journal, Recorder
from manifpt.tuning.proposals import SweepPlan, domain, scheduler, searcher
from manifpt.tuning.trial import ACCURACY, PROCESS_MEMORY, Sweep, Trial, trial_memory

TUNE = {
    # Seconds for a leg that runs when the study ends to come to its end.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "600",
    # Tune prints no tables of its own, and writes no files.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # manifpt handles interrupts itself.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
# A trial whose share has no memory still needs a resource to be placed by.
NEXT_TO_NOTHING = {"memory": 1}


def capacity_of_trials(
    num_workers: int | None, most: int | None
) -> tuple[int, dict[str, float], int]:
    """Return the workers of a trial, its share of the cluster, and the number that run at once.

    A trial trains with its workers beside a reader; it has several where four trials still fit. On
    a cluster without the memory of one trial, one runs all the same, and its share has none.
    """
    has = pools.capacity()
    cpus, gpus = has.get("CPU", 1.0), has.get("GPU", 0.0)
    count = num_workers or (1 if gpus >= 1 else max(1, min(4, int(cpus / 4) - 1)))
    share = {"CPU": min(cpus, count + 1.0)} | ({"GPU": float(count)} if gpus >= 1 else {})
    fit = int(min(cpus / share["CPU"], gpus / count if gpus >= 1 else cpus))
    if fit < 1 or count + 1 > max(cpus, 2):
        raise ManifptError(
            f"--num-workers {count}: a trial needs {count + 1} CPUs, a reader's with them, and the "
            f"cluster has {cpus:g} CPU and {gpus:g} GPU; ask for fewer{pools.GROWS}"
        )
    room = _room_by_memory(has.get("memory"), trial_memory(count))
    share |= {"memory": trial_memory(count)} if room is None or room > 0 else {}
    return count, share, min(fit, fit if room is None else max(1, room), most or fit)


def _room_by_memory(memory: float | None, each: float) -> int | None:
    """Return the number of trials in a memory beside the cache; None if it is not known yet."""
    if memory is None or not scaling.nodes_up():
        return None
    return max(0, int((memory - PROCESS_MEMORY - pipeline.READER_MEMORY) / each))


def run_study(sweep: Sweep, plan: SweepPlan, images: SweepImages, parent: Run) -> Journal:
    """Run trials until the budget is spent; return the journal."""
    import ray

    journal = Journal(sweep)
    results = journal.results()
    left = (len(sweep.space.grid()) if plan.sampler == "grid" else plan.trials) - len(results)
    best = max((r[ACCURACY] for r in results if r["status"] == FINISHED), default=0.0)
    if left <= 0 or (plan.target is not None and best >= plan.target):
        return journal
    cached = [sweep.own_memory] if sweep.own_memory else []
    scaling.wait_for([*cached, *sweep.bundles()], [*cached, *sweep.bundles() * plan.concurrent])
    held = sweep.own_memory
    cache = ray.remote(num_cpus=0, max_restarts=2, max_task_retries=2, **held)(Cache).remote(
        storage.join(sweep.output, "cache"), images, sweep.share
    )
    budget = Budget(plan.hours, plan.target)
    os.environ |= TUNE
    population = plan.sampler == "pbt"
    filesystem, path = storage.arrow_filesystem(storage.join(sweep.output, "_tune"))
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(Trial, sweep=sweep, cache=cache), held or NEXT_TO_NOTHING
        ),
        param_space={n: domain(c) for n, c in sweep.space.search.items()} if population else {},
        tune_config=tune.TuneConfig(
            num_samples=left,
            max_concurrent_trials=plan.concurrent,
            search_alg=None if population else searcher(sweep, plan, journal, results),
            scheduler=scheduler(sweep, plan),
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
    storage.remove_files(storage.join(sweep.output, "_tune"), r"\d+-\d+/.+")
    return journal
