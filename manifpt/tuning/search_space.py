"""The search space of a sweep, from a small YAML file; names are those of the jobs' options.

    fixed:                      # the same in all trials
      backbone: resnet18
    search:
      space: [rgb, freq, rgb+freq]
      learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
      neighbors: {low: 4, high: 32, log: true, when: {projector: [mean, tangent]}}
    defaults:                   # the first trial, beside what the jobs take by default
      projector: tangent

A choice with ``when`` is made only where others, named before it, have one of those values.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import optuna
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from manifpt.cli.space_options import ProjectionOptions, SpaceOptions
from manifpt.cli.training_options import LearningRate, TrainingOptions
from manifpt.errors import ManifptError
from manifpt.spaces import SPACES
from manifpt.spaces.space import LEARNED

Value = int | float | str | bool | None


class TrialSettings(SpaceOptions, ProjectionOptions, TrainingOptions):
    """All settings that decide a trial, besides the images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # A trial has whole epochs, which rungs count; and a rate that choices may hold.
    epochs: int = Field(30, ge=1, description="passes over the images")  # type: ignore[assignment]
    learning_rate: LearningRate = 1e-3  # type: ignore[assignment]


DEFAULTS = TrialSettings.model_validate({})


class Choice(BaseModel):
    """One of some values, or a number in a range; a whole one if both ends are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: tuple[Value, ...] = ()
    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    when: dict[str, tuple[Value, ...]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, given: Any) -> Any:
        return {"values": given} if isinstance(given, list) else given

    @model_validator(mode="after")
    def _complete(self) -> "Choice":
        ends = (self.low, self.high)
        if bool(self.values) == (None not in ends) or (ends.count(None) == 1):
            raise ValueError("give a list of values, or low and high")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError("low must be below high")
        return self

    @property
    def distribution(self) -> optuna.distributions.BaseDistribution:
        """Optuna's form of it."""
        if self.values:
            return optuna.distributions.CategoricalDistribution(self.values)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return optuna.distributions.IntDistribution(self.low, self.high, log=self.log)
        assert self.low is not None and self.high is not None  # noqa: PT018
        return optuna.distributions.FloatDistribution(self.low, self.high, log=self.log)

    def suggest(self, name: str, trial: Any) -> Value:
        """Ask Optuna's trial for a value."""
        if self.values:
            return trial.suggest_categorical(name, self.values)  # type: ignore[no-any-return]
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        ask = trial.suggest_int if whole else trial.suggest_float
        return ask(name, self.low, self.high, log=self.log)  # type: ignore[no-any-return]

    def holds(self, value: Value) -> bool:
        """Tell whether it may take that value."""
        if self.values:
            return value in self.values
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high  # type: ignore[operator]

    @property
    def first(self) -> Value:
        """The default value."""
        return self.values[0] if self.values else self.low


@dataclass(frozen=True)
class SearchSpace:
    """The fixed options, the choices, and the choices of the first trial."""

    fixed: Mapping[str, object]
    search: dict[str, Choice]
    defaults: Mapping[str, Any]

    @classmethod
    def of(
        cls, fixed: Mapping[str, object], search: Mapping[str, object], defaults: Mapping[str, Any]
    ) -> "SearchSpace":
        """Return the search space of a file's entries, checked before anything runs."""
        choices = {}
        for name, given in search.items():
            try:
                choices[name] = Choice.model_validate(given)
            except ValidationError as error:
                reason = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ManifptError(f"--config: search.{name}: {reason}") from None
        space = cls(fixed, choices, defaults)
        check_space(space)
        return space

    def active(self, chosen: Mapping[str, object]) -> dict[str, Choice]:
        """Return the choices that are made where those of ``chosen`` are."""
        known = {**DEFAULTS.model_dump(), **self.fixed, **chosen}
        return {
            name: choice
            for name, choice in self.search.items()
            if all(known[other] in values for other, values in choice.when.items())
        }

    def settings(self, chosen: Mapping[str, object]) -> TrialSettings:
        """Return a trial's settings; options without a choice are fixed or the jobs' default."""
        return TrialSettings.model_validate({**self.fixed, **chosen})

    @property
    def most_epochs(self) -> int:
        """The epochs of the longest trial."""
        choice = self.search.get("epochs")
        longest = (choice.values or (choice.high,)) if choice else ()
        return max(
            [self.settings({"epochs": e}).epochs for e in longest] or [self.settings({}).epochs]
        )

    def first(self) -> dict[str, Value]:
        """Return the choices of the first trial: the defaults."""
        return self._walk(self._default)

    def suggest(self, trial: Any) -> None:
        """Make all choices by asking Optuna's trial (its define-by-run function)."""
        self._walk(lambda name, choice: choice.suggest(name, trial))

    def grid(self) -> list[dict[str, Value]]:
        """Return all combinations of values, each once."""
        ranges = [name for name, choice in self.search.items() if not choice.values]
        if ranges:
            raise ManifptError(f"--sampler grid: {ranges[0]} is a range; give a list of values")
        found: dict[str, dict[str, Value]] = {}
        for values in product(*(choice.values for choice in self.search.values())):
            every = dict(zip(self.search, values, strict=True))
            chosen = self._walk(lambda name, _, every=every: every[name])  # type: ignore[misc]
            found.setdefault(str(chosen), chosen)
        return list(found.values())

    def _walk(self, value: Callable[[str, Choice], Value]) -> dict[str, Value]:
        """Make the choices one after the other, as those before allow."""
        chosen: dict[str, Value] = {}
        for name, choice in self.search.items():
            if name in self.active(chosen):
                chosen[name] = value(name, choice)
        return chosen

    def _default(self, name: str, choice: Choice) -> Value:
        wanted = self.defaults.get(name, getattr(DEFAULTS, name))
        return wanted if choice.holds(wanted) else choice.first


def check_space(space: SearchSpace) -> None:
    """Raise for names and values that no trial can have, before anything runs."""
    try:
        for problem in _problems(space):
            raise ManifptError(f"--config: {problem}")
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        unknown = first["type"] == "extra_forbidden"
        reason = "no such option of the jobs" if unknown else first["msg"]
        raise ManifptError(f"--config: {name} {first['input']!r}: {reason}") from None


def _problems(space: SearchSpace) -> Iterator[str]:
    if not space.search:
        yield "search: names nothing to choose"
    both = set(space.fixed) & set(space.search)
    if both:
        yield f"{min(both)} is both fixed and searched; choose one"
    before = set(space.fixed) | set(TrialSettings.model_fields) - set(space.search)
    for name, choice in space.search.items():
        unknown = set(choice.when) - before
        if unknown:
            yield f"search.{name}.when: {min(unknown)} is not an option named before it"
        before.add(name)
        for value in choice.values or (choice.low, choice.high):
            met = {other: values[0] for other, values in choice.when.items()}
            check_combination(space.settings(met | {name: value}))
    check_combination(space.settings(space.defaults))


def check_combination(settings: TrialSettings) -> None:
    """Raise for settings that fit no other."""
    for space in settings.space.split("+"):
        if space not in SPACES:
            raise ManifptError(f"--config: space {space}: unknown; choose of {', '.join(SPACES)}")
    if settings.tiles and set(settings.space.split("+")) & set(LEARNED):
        raise ManifptError("--config: tiles: learned spaces take whole images; leave it out")
    _ = settings.projection
