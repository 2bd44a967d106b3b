"""The records of a study's trials: in their folders, and as MLflow runs below the sweep's.

``trial.json`` is written when a trial begins, ``result.json`` when it has ended; one that was
interrupted has only the first.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any, cast

from ray import tune

from manifpt import storage
from manifpt.engine import session
from manifpt.tracking import Run
from manifpt.tuning.search_space import Value
from manifpt.tuning.trial import ACCURACY, Sweep
from manifpt.tuning.trial_format import BegunTrial, EndedTrial, LegResult, TrialOutcome

FINISHED, STOPPED, FAILED, INTERRUPTED = "finished", "stopped", "failed", "interrupted"
RUNS = {FINISHED: "FINISHED", STOPPED: "KILLED", FAILED: "FAILED", INTERRUPTED: "KILLED"}


class Journal:
    """The trials of a study, from the files in their folders."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.folder = storage.join(sweep.output, "trials")

    def _read(self, name: str) -> dict[str, Any]:
        if not storage.exists(self.folder):
            return {}
        found = [uri for uri, _ in storage.files_under(self.folder) if uri.endswith("/" + name)]
        return {uri.split("/")[-2]: storage.read_json(uri) for uri in sorted(found)}

    def results(self) -> list[EndedTrial]:
        """Return the results of the trials that have ended, in the order of their beginning."""
        found: dict[str, EndedTrial] = self._read("result.json")
        return sorted(found.values(), key=lambda trial: trial["began"])

    def interrupted(self) -> list[dict[str, Value]]:
        """Return the choices of trials that began and have not ended."""
        ended = self._read("result.json")
        begun: dict[str, BegunTrial] = self._read("trial.json")
        return [t["chosen"] for key, t in begun.items() if key not in ended]

    def begin(self, key: str, chosen: dict[str, Value], run: str) -> None:
        """Note a trial's beginning; an interrupted trial keeps its first one."""
        place = storage.join(self.folder, key, "trial.json")
        began = storage.read_json(place)["began"] if storage.exists(place) else time.time()
        trial: BegunTrial = {"key": key, "chosen": chosen, "run": run, "began": began}
        storage.write_json(place, trial)

    def end(self, key: str, status: str, result: TrialOutcome) -> EndedTrial:
        """Note the end of a trial; an interrupted trial has none."""
        begun: BegunTrial = storage.read_json(storage.join(self.folder, key, "trial.json"))
        body: EndedTrial = {**begun, "ended": time.time(), "status": status, **result}
        if status != INTERRUPTED:
            storage.write_json(storage.join(self.folder, key, "result.json"), body)
        return body


class Budget(tune.Stopper):  # type: ignore[misc]
    """Ends the study after some hours, or when a trial has reached the accuracy asked for."""

    def __init__(self, hours: float | None, target: float | None) -> None:
        self.ends = time.time() + hours * 3600 if hours else None
        self.target, self.reached = target, False

    def __call__(self, trial_id: str, result: LegResult) -> bool:
        """No trial is stopped alone."""
        return False

    def count(self, accuracy: float) -> None:
        """Check the accuracy of a trial that has ended and is recorded: the study may end with it.

        If this were done on its last result, Tune would stop the study before it reports the end of
        the trial.
        """
        self.reached |= self.target is not None and accuracy >= self.target

    def over(self) -> bool:
        """Tell whether it is spent."""
        return self.reached or (self.ends is not None and time.time() >= self.ends)

    def stop_all(self) -> bool:
        """Tell Ray Tune whether all trials are to stop."""
        return self.over()


class Recorder(tune.Callback):  # type: ignore[misc]
    """Records trials: in the journal, and as MLflow runs below the sweep's."""

    def __init__(self, journal: Journal, parent: Run, budget: Budget) -> None:
        self.journal, self.parent, self.budget = journal, parent, budget
        self.runs: dict[str, Run] = {}

    def __getstate__(self) -> dict[str, object]:
        """Return nothing for Tune's own file of its state: studies go on from the journal."""
        return {}

    def _key(self, trial: Any) -> str:
        sweep = self.journal.sweep
        if sweep.population:
            return str(trial.trial_id)
        return sweep.key(sweep.space.settings(trial.config))

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Open the trial's run."""
        if trial.trial_id not in self.runs:
            key = self._key(trial)
            settings = self.journal.sweep.space.settings(trial.config)
            run = self.parent.child(f"trial {key}", settings.model_dump(mode="json"))
            self.runs[trial.trial_id] = run
            self.journal.begin(key, trial.config, run.id)
            print(f"trial {key}: {choices_text(trial.config)}", file=sys.stderr, flush=True)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: LegResult, **info: Any
    ) -> None:
        """Log the epochs of a leg."""
        run = self.runs[trial.trial_id]
        first = result["epochs"] - len(result["history"])
        for epoch, row in enumerate(result["history"], start=first):
            run.metrics(row, step=epoch)
        numbers: dict[str, float] = {
            name: result[name]
            for name in (ACCURACY, "loss", "training_seconds", "images_per_second", "embedded")
            if name in result
        }
        run.metrics(numbers, step=result["progress"])
        print(
            f"trial {result['key']}: epoch {result['epochs']}, accuracy {result[ACCURACY]:.3f}, "
            f"{result['training_seconds']:.0f} s",
            file=sys.stderr,
            flush=True,
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the run of a trial that ended by itself or was stopped."""
        result = trial.last_result or {}
        status = FINISHED if result.get("ended") else INTERRUPTED if self.budget.over() else STOPPED
        self._end(trial, status, result)
        if status == FINISHED:
            self.budget.count(result[ACCURACY])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the run of a trial that failed; the others go on."""
        error = session.cause(trial.get_pickled_error() or RuntimeError("its process died"))
        self._end(trial, FAILED, (trial.last_result or {}) | {"error": str(error)[-500:]})

    def _end(self, trial: Any, status: str, result: Mapping[str, object]) -> None:
        run, key = self.runs[trial.trial_id], self._key(trial)
        kept = TrialOutcome.__optional_keys__ & result.keys()
        body = cast("TrialOutcome", {name: result[name] for name in kept})
        self.journal.end(key, status, body)
        run.tags(
            {"status": status, "key": key, **({"error": body["error"]} if "error" in body else {})}
        )
        run.end(RUNS[status])


def choices_text(chosen: Mapping[str, Value]) -> str:
    """Return choices as text."""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in chosen.items()
    )
