"""What the study and the map answer, in words that follow from their tables of differences."""

from typing import NamedTuple

import pandas as pd

from everycause.reporting.tables import markdown

COMPLETE, REFERENCE = "completeness", "continued"
QUESTIONS = (
    ("Does counterfactual mask training (SS-CA) beat training on?", "masks", REFERENCE),
    ("Does its search beat random regions?", "masks", "masks_random"),
    ("Do the filter terms beat training on?", "filters", REFERENCE),
    ("Do they beat random filters?", "filters", "filters_random"),
    ("Is the joint loss better than masks alone?", "joint", "masks"),
    ("Does our object exchange beat training on?", "object_exchange", REFERENCE),
    ("Does it beat the masks?", "object_exchange", "masks"),
)
"""Question, row, and the row that it is compared with."""
LITTLE = 0.5
"""Scene correlation up to which the scene says little about the class."""


class Count(NamedTuple):
    """In how many worlds a difference is shown to be above and below 0."""

    above: int
    below: int
    worlds: int

    @property
    def verdict(self) -> str:
        """The count in words."""
        if self.above == self.worlds:
            return "Yes"
        if self.below == self.worlds:
            return "No: it harms"
        if self.above and self.below:
            return "It depends on the world"
        if self.above:
            return "In some worlds"
        return "No: it harms in some worlds" if self.below else "No difference shown"


def compared(found: pd.DataFrame, row: str, reference: str, measure: str = COMPLETE) -> pd.DataFrame:
    """The differences of one row from another, one line for each world."""
    return found[(found.row == row) & (found.reference == reference) & (found.measure == measure)]


def count(here: pd.DataFrame) -> Count:
    """In how many of some worlds the interval lies above and below 0."""
    return Count(int((here.low > 0).sum()), int((here.high < 0).sum()), len(here))


def interval(mean: float, low: float, high: float) -> str:
    """A difference in points with its interval, bold where that excludes 0."""
    shown = f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"**{shown}**" if low > 0 or high < 0 else shown


def answer_table(study: pd.DataFrame, grid: pd.DataFrame | None = None) -> str:
    """Each question with its verdict and its differences in completeness, world by world.

    Args:
        study: Differences of the study of named worlds.
        grid: Those of the map.
    """
    worlds, lines = list(dict.fromkeys(study.world)), []
    for question, row, reference in QUESTIONS:
        here = compared(study, row, reference)
        if here.empty:
            continue
        by_world = {one.world: interval(one.mean, one.low, one.high) for one in here.itertuples()}
        line = [question, f"**{count(here).verdict}**", *(by_world.get(world, "") for world in worlds)]
        if grid is not None:
            wide = count(compared(grid, row, reference))
            line.append(f"{wide.above} above, {wide.below} below, of {wide.worlds}" if wide.worlds else "")
        lines.append(line)
    on_the_map = [] if grid is None else ["worlds of the map"]
    return markdown(["question", "answer", *(f"`{world}`" for world in worlds), *on_the_map], lines)


def advice_table(grid: pd.DataFrame) -> str:
    """Which row to take: for scenes that say little and much about the class, what each row gains at least and at most.

    Args:
        grid: Differences of the map.
    """
    kinds = {
        f"the background says little about the class (correlation up to {LITTLE:g})": grid.scene_correlation <= LITTLE,
        "the background says much about it": grid.scene_correlation > LITTLE,
        "you do not know": grid.scene_correlation >= 0,
    }
    rows = list(dict.fromkeys(grid[grid.reference == REFERENCE].row))
    lines = []
    for kind, chosen in kinds.items():
        gains = {row: compared(grid[chosen], row, REFERENCE) for row in rows}
        best = max(rows, key=lambda row: float(gains[row]["mean"].min()))
        cells = [f"{100 * gains[row]['mean'].min():+.0f} to {100 * gains[row]['mean'].max():+.0f}" for row in rows]
        lines.append([kind, f"`{best}`", *cells])
    return markdown(["your images", "largest gain in the worst world", *(f"`{row}`" for row in rows)], lines)


def price(grid: pd.DataFrame, row: str) -> str:
    """Where a row is shown worse than training on, in words; empty where nowhere. Less is better in the scene gap."""
    found = []
    for measure in dict.fromkeys(grid.measure):
        wide = count(compared(grid, row, REFERENCE, measure))
        worse = wide.above if measure == "scene_gap" else wide.below
        if worse:
            name = measure.removeprefix("accuracy/").replace("_", " ")
            found.append(f"{name} in {worse} of {wide.worlds} worlds")
    return f"`{row}` is shown worse than training on in: {'; '.join(found)}." if found else ""
