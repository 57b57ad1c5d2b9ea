"""Stored predictions of all rows and seeds, gathered for tables and figures."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from everycause.artifacts import read_json
from everycause.evaluation.predictions import Predictions
from everycause.evaluation.statistics import Interval, paired_interval
from everycause.shapes import Float

REFERENCE = "continued"
"""The row that every other one is compared with: the same schedule without the method."""


@dataclass(frozen=True)
class Results:
    """The metrics and predictions of every row and seed."""

    frame: pd.DataFrame
    """One line per row and seed, one column per metric."""
    predictions: dict[tuple[str, int], Predictions]
    rows: tuple[str, ...]
    seeds: tuple[int, ...]

    @classmethod
    def load(cls, folder: Path, rows: list[str], seeds: list[int]) -> "Results":
        """All results below artifacts/evaluation.

        Raises:
            UserError: one is missing; the sentence names the stage to run.
        """
        lines, stored = [], {}
        for row in rows:
            for seed in seeds:
                place = folder / row / f"seed-{seed}"
                lines.append({"row": row, "seed": seed, **read_json(place / "metrics.json", "evaluate_ood")})
                stored[row, seed] = Predictions.load(place)
        return cls(pd.DataFrame(lines), stored, tuple(rows), tuple(seeds))

    def values(self, row: str, metric: str) -> Float[np.ndarray, "seeds"]:
        """One metric of one row, seed by seed."""
        return self.frame.loc[self.frame["row"] == row, metric].to_numpy(dtype=float)

    def has(self, metric: str) -> bool:
        """Whether the metric was measured."""
        return metric in self.frame.columns

    def means(self) -> dict[str, dict[str, float]]:
        """Every metric of every row, averaged over seeds."""
        return {
            row: {
                metric: float(self.values(row, metric).mean())
                for metric in self.frame.columns
                if metric not in ("row", "seed")
            }
            for row in self.rows
        }

    def families(self) -> Iterator[str]:
        """The families of views, in order."""
        views = next(iter(self.predictions.values())).logits
        yield from dict.fromkeys(view.split("/")[0] for view in views)

    def difference(self, row: str, family: str) -> Interval | None:
        """The paired difference in accuracy from the reference, where the reference was evaluated."""
        if REFERENCE not in self.rows or row in (REFERENCE, "base"):
            return None
        stored = self.predictions[row, self.seeds[0]]
        natural = stored.conforms is None and family in (
            "sketch",
            "renditions",
        )  # near-duplicates stand in the same class: whole classes are drawn
        return paired_interval(
            self.differences(row, family), stored.labels[stored.family(family)[0]].numpy() if natural else None
        )

    def differences(self, row: str, family: str) -> Float[np.ndarray, "seeds images"]:
        """By how much a row is right more often than the reference, seed by seed and image by image."""
        return np.stack(
            [
                self.predictions[row, seed].correctness(family) - self.predictions[REFERENCE, seed].correctness(family)
                for seed in self.seeds
            ]
        )
