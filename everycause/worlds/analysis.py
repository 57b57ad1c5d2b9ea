"""What a study says: every measure as a table, differences between rows with intervals, and one correlation.

Differences are paired by seed and by test image; their intervals are bootstrapped over both, so they hold for another
seed, not only for other images. p-values are exact sign flips over seeds, adjusted by Holm over all differences of a
world.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import spearmanr, t

from everycause.evaluation.statistics import RESAMPLES, Interval, holm, paired_interval, sign_flip_p
from everycause.reporting.results import REFERENCE
from everycause.reporting.tables import LEAST_SEEDS
from everycause.worlds.cells import BASE, Cell, World
from everycause.worlds.measurement import IMAGE_MEASURES, Laboratory

COLUMNS = ["world", "dominance", "scene_correlation", "row", "seed", "measure", "value"]
NOISE_COLUMNS = ["world", "dominance", "scene_correlation", "label_noise", "row", "seed", "measure", "value"]
"""Columns of the tables of a study or map, and of that with label noise."""
EXTRA = (
    ("masks", "masks_random"),
    ("object_exchange", "masks"),
    ("object_exchange", "masks_random"),
    ("joint", "masks"),
    ("filters", "filters_random"),
    ("joint", "filters"),
)
"""Differences that are asked for beside those from `continued`: row and row."""
SURPRISE, ONE_IMAGE = 0.001, 1 / 480
"""How often one measure of a run that is like the study's would be called a surprise, and the share that one test image
is."""
ROBUSTNESS = ("accuracy/corruptions", "accuracy/renditions", "accuracy/sketch")
"""Their mean is what completeness should predict."""


class Difference(NamedTuple):
    """How much larger a measure is in one row than in another, in one world."""

    where: World
    row: str
    reference: str
    measure: str
    interval: Interval
    p: float | None
    """Adjusted p-value; None with fewer than six seeds."""


def table(laboratory: Laboratory, cells: list[Cell], rows: list[str]) -> pd.DataFrame:
    """Every measure of every row, in the columns NOISE_COLUMNS; without noise COLUMNS tell all."""
    lines = [
        (*cell.where, row, cell.seed, measure, value)
        for cell in cells
        for row in (BASE, *rows)
        for measure, value in sorted(laboratory.measures(cell, row).items())
    ]
    return pd.DataFrame(lines, columns=pd.Index(NOISE_COLUMNS))


def differences(laboratory: Laboratory, cells: list[Cell], rows: list[str]) -> list[Difference]:
    """Every row against `continued`, and the pairs of EXTRA that are there, in every world and image measure."""
    pairs = [(row, REFERENCE) for row in rows if row != REFERENCE]
    pairs += [(row, other) for row, other in EXTRA if {row, other} <= set(rows)]
    found: list[Difference] = []
    for world, members in worlds_of(cells).items():
        by_row = {row: [laboratory.scores(cell, row) for cell in members] for row in rows}
        unadjusted, raw = [], {}
        for row, reference in pairs:
            for measure in IMAGE_MEASURES:
                if measure not in by_row[row][0]:
                    continue
                change = np.stack(
                    [one[measure] - other[measure] for one, other in zip(by_row[row], by_row[reference], strict=True)]
                )
                unadjusted.append(Difference(world, row, reference, measure, paired_interval(change), None))
                raw[f"{row} {reference} {measure}"] = change.mean(axis=1)
        enough = len(members) >= LEAST_SEEDS
        adjusted = holm({name: sign_flip_p(means) for name, means in raw.items()}) if enough else dict.fromkeys(raw)
        found += [one._replace(p=adjusted[f"{one.row} {one.reference} {one.measure}"]) for one in unadjusted]
    return found


def frame(found: list[Difference]) -> pd.DataFrame:
    """Differences as a table; `mean`, `low` and `high` are in the measure's own unit."""
    lines = [{**one.where._asdict(), **one._asdict(), **one.interval._asdict()} for one in found]
    made = pd.DataFrame(lines).drop(columns=["where", "interval"])
    return made if made.label_noise.any() else made.drop(columns="label_noise")


def worlds_of(cells: list[Cell]) -> dict[World, list[Cell]]:
    """World → its cells, one per seed, in the order of the plan."""
    worlds: dict[World, list[Cell]] = {}
    for cell in cells:
        worlds.setdefault(cell.where, []).append(cell)
    return worlds


def correlation(table: pd.DataFrame, world: str, seed: int = 0) -> Interval:
    """Spearman's rank correlation of completeness and robustness over the runs of a world.

    The interval is a bootstrap over training seeds; the runs of one seed share a base and are drawn together.

    Args:
        table: As `table` gives it.
        world: Name of the world.
        seed: Of the random draws.
    """
    wide = table[table.world == world].pivot_table(index=["seed", "row"], columns="measure", values="value")
    pairs = pd.DataFrame({"x": wide["completeness"], "y": wide[list(ROBUSTNESS)].mean(axis=1)})
    by_seed = [group.to_numpy() for _, group in pairs.groupby(level="seed")]
    generator = np.random.default_rng(seed)
    drawn = (
        np.concatenate([by_seed[i] for i in generator.integers(len(by_seed), size=len(by_seed))])
        for _ in range(RESAMPLES)
    )
    low, high = np.nanquantile([_rank_correlation(runs) for runs in drawn], (0.025, 0.975))
    return Interval(_rank_correlation(pairs.to_numpy()), float(low), float(high))


def surprises(study: pd.DataFrame, world: str, run: dict[str, dict[str, float]]) -> list[str]:
    """The measures of one run that lie outside what a study of the same world leads one to expect, as sentences.

    A single run on another machine is one more seed: each of IMAGE_MEASURES is expected within the 99.9 % prediction
    interval of Student's t over the study's seeds, and one test image more on each side, since measures of a few seeds
    may all be equal. Of forty measures one is then called a surprise in one run of twenty-five.

    Args:
        study: As `table` gives it.
        world: Name of the world.
        run: Row → measure → value, from 0 to 1.
    """
    found = []
    known = study[(study.world == world) & study.measure.isin(IMAGE_MEASURES)]
    for (row, measure), here in known.groupby(["row", "measure"]):
        if measure not in run.get(row, {}):
            continue
        count, mean = len(here), float(here.value.mean())
        reach = t.ppf(1 - SURPRISE / 2, count - 1) * float(here.value.std()) * (1 + 1 / count) ** 0.5 + ONE_IMAGE
        value = run[row][measure]
        if abs(value - mean) > reach:
            found.append(f"{measure} of `{row}` is {value:.3f}, expected {mean:.3f} ± {reach:.3f}")
    return found


def _rank_correlation(runs: np.ndarray) -> float:
    return float(spearmanr(runs[:, 0], runs[:, 1]).statistic)
