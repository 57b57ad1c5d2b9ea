"""What is searched, how, and by what it is judged: the `tuning:` section, and the plan of one study."""

import math
from typing import Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from everycause.section import Section

Value = bool | int | float | str
OBJECTIVES = ("validation completeness", "validation accuracy")
"""What a study may maximize: shares of validation images, 0 to 1."""


class Range(Section):
    """Where one number is searched; whole numbers where the present value is one."""

    low: float
    high: float
    log: bool
    """Search on a logarithmic scale."""
    published: float | None = None
    """The papers' choice, for trial 1; without one that trial keeps the present value."""

    @model_validator(mode="after")
    def _is_a_range(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError("a logarithmic range must begin above 0")
        if self.published is not None and not self.low <= self.published <= self.high:
            raise ValueError(f"the range {self.low} … {self.high} excludes the published value {self.published}")
        return self


class Values(Section):
    """The values that one parameter may take: categories of a sweep, or an axis of a grid."""

    values: list[Value] = Field(min_length=2)
    """The present value must be one of them: it is what the others are read against."""
    published: Value | None = None
    """The papers' choice, for trial 1."""

    @model_validator(mode="after")
    def _are_different(self) -> "Values":
        if len(set(self.values)) < len(self.values):
            raise ValueError(f"the values {self.values} repeat themselves")
        if self.published is not None and self.published not in self.values:
            raise ValueError(f"the values {self.values} lack the published value {self.published}")
        return self


class Ablation(Section):
    """A grid over params of one retraining row."""

    row: str = Field(min_length=1)
    """The row that is retrained."""
    parameters: dict[str, Values] = Field(min_length=1)
    """Dotted path → values; all combinations are tried."""


class Plan(NamedTuple):
    """One study: the sweep of the section, or one of its grids."""

    study: str
    row: str
    objectives: list[str]
    trials: int
    seeds: list[int]
    sampler: str
    pruner: str
    seed: int
    parameters: dict[str, Range | Values]
    grid: bool
    """Every combination of the values is tried once; nothing is sampled and nothing pruned."""

    @property
    def scheme(self) -> dict[str, object]:
        """What a study must have been made with to be gone on with."""
        return {
            "row": self.row, "objectives": self.objectives, "seeds": self.seeds,
            "parameters": {path: bounds.model_dump(exclude={"published"}) for path, bounds in self.parameters.items()},
        }  # fmt: skip


class TuningParams(Section):
    """A study over params of one retraining row."""

    study: str = Field(min_length=1)
    """Its name in the storage."""
    row: str = Field(min_length=1)
    """The row that is tuned: one of everycause.training.rows, or masks_rounds."""
    objectives: list[str] = Field(min_length=1, max_length=2)
    """What is maximized, never on a test split: one measure, or two for a front of trials of which neither gains without the other's loss."""
    trials: int = Field(ge=1)
    """Trials in all, pruned ones counted; a study that has fewer goes on."""
    seeds: list[int] = Field(min_length=1)
    """Every trial is trained once for each, on this seed's base, and its measures averaged."""
    sampler: Literal["tpe", "nsga2", "random"]
    """Optuna's sampler."""
    pruner: Literal["none", "median", "hyperband"]
    """What stops a trial whose epochs promise little; `none` with two objectives."""
    seed: int = Field(ge=0)
    """Of the sampler: one worker draws the same trials again, also when it is stopped and goes on."""
    parameters: dict[str, Range | Values] = Field(min_length=1)
    """Dotted path → range or values."""
    ablations: dict[str, Ablation]
    """Grids by name, for `make ablation name=…`."""

    @field_validator("objectives")
    @classmethod
    def _never_a_test_split(cls, objectives: list[str]) -> list[str]:
        for name in objectives:
            if name not in OBJECTIVES:
                raise ValueError(
                    f"'{name}' is not among the measures of validation images ({', '.join(OBJECTIVES)}); what is measured on a test split, shifted or not, cannot be tuned on"
                )
        if len(set(objectives)) < len(objectives):
            raise ValueError(f"'{objectives[0]}' is named twice")
        return objectives

    @model_validator(mode="after")
    def _two_objectives_are_not_pruned(self) -> "TuningParams":
        if len(self.objectives) > 1 and self.pruner != "none":
            raise ValueError(f"Optuna cannot prune a study of two objectives: set pruner to none, not {self.pruner}")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds {self.seeds} must be different and not negative")
        return self

    def plan(self, ablation: str = "") -> Plan:
        """The sweep, or the grid of an ablation.

        Raises:
            ValueError: there is no ablation of that name.
        """
        if not ablation:
            return Plan(self.study, self.row, self.objectives, self.trials, self.seeds, self.sampler, self.pruner, self.seed, dict(self.parameters), grid=False)
        if ablation not in self.ablations:
            raise ValueError(f"tuning.ablations has no '{ablation}' (known: {', '.join(self.ablations) or 'none'})")
        chosen = self.ablations[ablation]
        trials = math.prod(len(one.values) for one in chosen.parameters.values())
        return Plan(
            f"ablation-{ablation}", chosen.row, self.objectives[:1], trials, self.seeds, "random", "none", self.seed, dict(chosen.parameters), grid=True
        )
