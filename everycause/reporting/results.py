"""What the stages stored, gathered for tables and figures: evaluations of all rows and seeds, and other findings."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import Tensor

from everycause.artifacts import HISTORY, load_tensors, read_json
from everycause.errors import UserError
from everycause.evaluation.predictions import Predictions
from everycause.evaluation.statistics import Interval, paired_interval
from everycause.shapes import Float, Int64

REFERENCE = "continued"
"""The row that every other one is compared with: the same schedule without a method."""
CLUSTERED = ("sketch", "renditions")
"""Published sets whose near-duplicates stand in the same class: intervals draw whole classes."""


ROUNDS, EXCHANGE = "masks_rounds", "object_exchange"
"""The row whose rounds are reported, and that whose counterfactual images are shown beside those of masks."""


@dataclass(frozen=True)
class Results:
    """The metrics and predictions of every row and seed."""

    frame: pd.DataFrame
    """One line per row and seed, one column per metric."""
    predictions: dict[tuple[str, int], Predictions]
    """By row and seed."""
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
        metrics = [metric for metric in self.frame.columns if metric not in ("row", "seed")]
        return {row: {metric: float(self.values(row, metric).mean()) for metric in metrics} for row in self.rows}

    @property
    def views(self) -> list[str]:
        """The names of all views, in the order of the data."""
        return list(next(iter(self.predictions.values())).views)

    def families(self) -> Iterator[str]:
        """The families of views, in the order of the data."""
        yield from dict.fromkeys(view.split("/")[0] for view in self.views)

    def accuracy_metrics(self) -> list[str]:
        """The accuracies of single views and of all corruptions together, in the order of the data."""
        views = ["corruptions" if view.startswith("corruptions/") else view for view in self.views]
        return [name for name in dict.fromkeys(f"accuracy/{view}" for view in views) if self.has(name)]

    def recalls(self, row: str, family: str) -> Float[np.ndarray, "classes"]:
        """The share of each class's images that is recognized, averaged over the views of a family and the seeds."""
        return np.mean([self.predictions[row, seed].recalls(family) for seed in self.seeds], axis=0)

    def accuracy(self, row: str, family: str) -> float:
        """The accuracy of a row, averaged over the views of a family, the images and the seeds."""
        return float(np.mean([self.predictions[row, seed].correctness(family).mean() for seed in self.seeds]))

    def difference(self, row: str, family: str) -> Interval | None:
        """The paired difference in accuracy from the reference, where the reference was evaluated."""
        if REFERENCE not in self.rows or row in (REFERENCE, "base"):
            return None
        return paired_interval(self.differences(row, family), self._clusters(row, family))

    def interval(self, row: str, family: str) -> Interval:
        """The accuracy of a row on a view, or averaged over the views of a family, with its interval."""
        correct = np.stack([self.predictions[row, seed].correctness(family) for seed in self.seeds])
        return paired_interval(correct, self._clusters(row, family))

    def _clusters(self, row: str, family: str) -> Int64[np.ndarray, "images"] | None:
        """The groups that intervals draw as a whole, where there are any."""
        stored = self.predictions[row, self.seeds[0]]
        clustered = stored.conforms is None and family in CLUSTERED
        return stored.labels(stored.family(family)[0]).numpy() if clustered else None

    def differences(self, row: str, family: str) -> Float[np.ndarray, "seeds images"]:
        """The difference in correctness from the reference, for each seed and test image."""

        def correctness(which: str, seed: int) -> Float[np.ndarray, "images"]:
            return self.predictions[which, seed].correctness(family)

        return np.stack([correctness(row, seed) - correctness(REFERENCE, seed) for seed in self.seeds])


Measures = dict[str, float]
Faithfulness = dict[str, dict[str, Measures]]
"""Row → selector → measure."""
DetectionReport = dict[str, dict[str, Any]]
"""Split → images, errors, detectors, relabelling; for the test split also by_class."""


class Pictures(NamedTuple):
    """Tensors that a picture is drawn from, with their description."""

    tensors: dict[str, Tensor]
    description: dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """What was found besides accuracies, for one seed. None or empty where a stage was not asked for."""

    class_names: list[str]
    cues: list[str] = field(default_factory=list)
    """Names of the parts of Codebirds; empty for photographs."""
    code: dict[str, Any] | None = None
    """Length, distance, number of classes and words of the code of Codebirds."""
    meanings: dict[str, str] = field(default_factory=dict)
    """Row → what it adds to the continued base."""
    histories: dict[str, list[Measures]] = field(default_factory=dict)
    """Row → measures of each epoch."""
    masks: Measures | None = None
    faithfulness: Faithfulness = field(default_factory=dict)
    rounds: list[Measures] = field(default_factory=list)
    """The measures after each round of `masks_rounds`."""
    filters: dict[str, Any] | None = None
    detection: DetectionReport | None = None
    filter_pictures: Pictures | None = None
    gallery: Pictures | None = None
    exchange: Pictures | None = None
    """Counterfactual images of `object_exchange`."""
    contact_sheet: Pictures | None = None

    @classmethod
    def load(cls, artifacts: Path, seed: int, rows: tuple[str, ...], explained: list[str] | None = None) -> "Findings":
        """Everything below artifacts/ but the evaluations of further seeds.

        Args:
            artifacts: The folder.
            seed: The training seed.
            rows: Rows that are reported. What was left there by other rows is not read.
            explained: Rows whose explanations were judged; None reads those that there are.

        Raises:
            UserError: a stage that was asked for did not finish, or a file is damaged; the sentence names the stage.
        """

        def place(kind: str, variant: str) -> Path:
            return artifacts / kind / variant / f"seed-{seed}"

        described = ("class_names", "cues", "code")
        data = read_json(place("evaluation", rows[0]) / "data.json", "evaluate_ood", *described)
        filters, masks = place("filters", "minimum_correct"), place("masks", "counterfactual")
        judged = {row: place("faithfulness", row) / "faithfulness.json" for row in rows}
        judged = {row: file for row, file in judged.items() if explained is None or row in explained}
        keys = ("selectors", "masks")
        found = {row: read_json(file, "measure_faithfulness", *keys) for row, file in judged.items() if file.is_file()}
        mask_summary = _summary(masks, "generate_masks")
        return cls(
            class_names=data["class_names"],
            cues=data["cues"],
            code=data["code"],
            meanings=_meanings({row: place("models", row) / "row.json" for row in rows}),
            histories={row: _epochs(place("models", row) / HISTORY) for row in rows if row != "base"},
            masks=None if mask_summary is None else mask_summary | found.get("base", {}).get("masks", {}),
            faithfulness={row: one["selectors"] for row, one in found.items()},
            rounds=_rounds(place("models", ROUNDS) / "rounds.json") if ROUNDS in rows else [],
            filters=_summary(filters, "accumulate_filters"),
            detection=_json(place("detection", "base") / "detection.json", "detect_misclassifications"),
            filter_pictures=_pictures(filters, "accumulate_filters"),
            gallery=_first_gallery([place("models", row) for row in sorted(rows, key=lambda row: row != "masks")]),
            exchange=_pictures(place("models", EXCHANGE), "retrain") if EXCHANGE in rows else None,
            contact_sheet=_pictures(place("evaluation", "base"), "evaluate_ood"),
        )


def _json(path: Path, made_by: str) -> Any:
    """A stored value, or None where there is none."""
    return read_json(path, made_by) if path.is_file() else None


def _rounds(path: Path) -> list[Measures]:
    """What was observed after each round, where the row was trained."""
    return read_json(path, "retrain", kind=list) if path.is_file() else []


def _summary(folder: Path, made_by: str) -> dict[str, Any] | None:
    """A stage's summary, or None where params.yaml did not ask for the stage."""
    summary = _json(folder / "summary.json", made_by)
    return summary if summary is not None and summary.get("asked", True) else None


def _pictures(folder: Path, made_by: str) -> Pictures | None:
    path = folder / "pictures.safetensors"
    return Pictures(*load_tensors(path, made_by)) if path.is_file() else None


def _first_gallery(folders: list[Path]) -> Pictures | None:
    """The example images of the first of some rows that stored any."""
    return next((found for folder in folders if (found := _pictures(folder, "retrain")) is not None), None)


def _meanings(files: dict[str, Path]) -> dict[str, str]:
    """What each row adds to the continued base; a row that does not say it is called by its name."""
    stored = {row: (_json(file, "retrain") or {}).get("meaning", row) for row, file in files.items()}
    return stored | {row: "the starting point" for row in files if row == "base"}


def _epochs(history: Path) -> list[Measures]:
    """The measures of each epoch of a retraining.

    Raises:
        UserError: a line is damaged.
    """
    if not history.is_file():
        return []
    try:
        return [dict(json.loads(line)) for line in history.read_text(encoding="utf-8").splitlines()]
    except (ValueError, TypeError) as error:
        raise UserError(f"{history} is damaged ({error}): delete it and run the stage retrain again") from error
