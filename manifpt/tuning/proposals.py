"""Proposals of trials, and early stopping: Optuna's samplers, Ray's schedulers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from manifpt.errors import ManifptError
from manifpt.tuning.journal import FINISHED, STOPPED, Journal
from manifpt.tuning.search_space import Choice, Value
from manifpt.tuning.trial import ACCURACY, Sweep
from manifpt.tuning.trial_format import EndedTrial, Objective

# Options that a population may change in a training that goes on.
MUTABLE = ("learning_rate", "weight_decay")
# The number of known proposals in a row after which the choices count as used up.
TRIES = 100


@dataclass(frozen=True)
class SweepPlan:
    """The plan of a sweep: the sampler, the budget, and the objectives."""

    sampler: str = "optuna"
    trials: int = 20
    hours: float | None = None
    target: float | None = None
    objectives: tuple[Objective, ...] = (ACCURACY,)
    reduction: int = 3
    concurrent: int = 1
    seed: int = 0


def storage_of(
    sweep: Sweep, plan: SweepPlan, results: Sequence[EndedTrial]
) -> optuna.storages.InMemoryStorage:
    """Return Optuna's storage with a study named ``sweep`` that knows the results."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
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


class Fresh(OptunaSearch):  # type: ignore[misc]
    """Optuna's proposals, none twice; it ends when it finds nothing new."""

    def __init__(self, known: Sequence[Mapping[str, Value]], **given: Any) -> None:
        super().__init__(**given)
        self.seen = {_text(chosen) for chosen in known}

    def suggest(self, trial_id: str) -> dict[str, Value] | str:
        """Return the choices of a new trial."""
        for _ in range(TRIES):
            chosen: dict[str, Value] = super().suggest(trial_id)
            if _text(chosen) not in self.seen:
                self.seen.add(_text(chosen))
                return chosen
            repeated = self._ot_trials.pop(trial_id)
            self._ot_study.tell(repeated, state=optuna.trial.TrialState.FAIL)
        return str(Searcher.FINISHED)


def _text(chosen: Mapping[str, Value]) -> str:
    return json.dumps(chosen, sort_keys=True)


def searcher(
    sweep: Sweep, plan: SweepPlan, journal: Journal, results: Sequence[EndedTrial]
) -> Fresh:
    """Return the searcher, which proposes the interrupted trials and the defaults first."""
    first = [] if results else [sweep.space.first()]
    if plan.sampler == "grid":
        done = [result["chosen"] for result in results]
        first = [chosen for chosen in sweep.space.grid() if chosen not in done]
    begun = [chosen for chosen in journal.interrupted() if chosen not in first]
    tpe = plan.sampler == "optuna"
    sampler = optuna.samplers.TPESampler if tpe else optuna.samplers.RandomSampler
    return Fresh(
        [result["chosen"] for result in results],
        space=sweep.space.suggest,
        metric=list(plan.objectives) if len(plan.objectives) > 1 else plan.objectives[0],
        mode=["max"] * len(plan.objectives) if len(plan.objectives) > 1 else "max",
        points_to_evaluate=begun + first,
        # After a restart, the seed gives other proposals than before.
        sampler=sampler(seed=plan.seed + len(results)),
        storage=storage_of(sweep, plan, results),
        study_name="sweep",
    )


def scheduler(sweep: Sweep, plan: SweepPlan) -> Any:
    """Return the scheduler, which stops trials or exchanges their weights."""
    if plan.sampler == "pbt":
        return PopulationBasedTraining(
            time_attr="training_iteration",
            metric=ACCURACY,
            mode="max",
            perturbation_interval=1,
            hyperparam_mutations=mutations(sweep),
        )
    if len(plan.objectives) > 1 or not sweep.rungs:
        return FIFOScheduler()
    most = len(sweep.seeds) if len(sweep.seeds) > 1 else 10**6
    return AsyncHyperBandScheduler(
        time_attr="progress",
        metric=ACCURACY,
        mode="max",
        max_t=most,
        grace_period=1 if len(sweep.seeds) > 1 else sweep.rungs[0],
        reduction_factor=plan.reduction,
    )


def mutations(sweep: Sweep) -> dict[str, object]:
    """Return the choices that a population may change, as Ray Tune's."""
    found = {n: domain(c) for n, c in sweep.space.search.items() if n in MUTABLE}
    if not found:
        raise ManifptError(f"--sampler pbt: search {' or '.join(MUTABLE)}, which it changes")
    return found


def domain(choice: Choice) -> Any:
    """Return a choice as Ray Tune's."""
    if choice.values:
        return tune.choice(list(choice.values))
    whole = isinstance(choice.low, int) and isinstance(choice.high, int)
    if whole:
        return (tune.lograndint if choice.log else tune.randint)(choice.low, choice.high)
    return (tune.loguniform if choice.log else tune.uniform)(choice.low, choice.high)
