"""Train and measure one row in one cell, and keep what was measured: a study that is stopped goes on.

The base, the filters and the masks of a cell are made once and kept beside the results (UpstreamCache). Nothing is
selected here: every row is measured on the test split and all shifted ones after its last epoch.
"""

import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from everycause import tracking
from everycause.artifacts import HISTORY, atomic_folder, code_fingerprint, read_json, save_tensors, write_json
from everycause.data.shifts import views
from everycause.data.sources import DataParams, open_split
from everycause.data.split import Split
from everycause.errors import UserError
from everycause.evaluation.completeness import completeness_weights
from everycause.evaluation.metrics import metrics
from everycause.evaluation.ood import evaluate
from everycause.evaluation.predictions import Predictions
from everycause.inference import logits_of
from everycause.models import Classifier, load
from everycause.params import flattened
from everycause.training.loss import accuracy
from everycause.tuning.trial import trial
from everycause.tuning.upstream import TrialParams, UpstreamCache
from everycause.worlds.cells import BASE, Cell

MEASURES, SCORES, PLAN = "measures.json", "scores.safetensors", "plan.json"
IMAGE_MEASURES = ("completeness", "scene_gap", "accuracy/corruptions", "accuracy/renditions", "accuracy/sketch")
"""Measures that are a mean over test images, so that rows can be compared image by image."""


@dataclass(frozen=True)
class Laboratory:
    """Where the rows of a study are trained, and with which params."""

    work: Path
    """Folder of finished rows, and of bases, filters and masks that they share."""
    params: SimpleNamespace
    """The sections of params.yaml."""
    threads: int
    device: torch.device
    parent: str | None
    """The MLflow run of the study."""

    def missing(self, cell: Cell, rows: list[str]) -> list[str]:
        """The rows of a cell, base first, that were not measured yet."""
        return [row for row in (BASE, *rows) if not (self.place(cell, row) / MEASURES).is_file()]

    def place(self, cell: Cell, row: str) -> Path:
        """The folder of one measured row."""
        return self.work / "rows" / cell.name / row

    def measure(self, cell: Cell, rows: list[str]) -> None:
        """Train and measure what is missing of a cell.

        Raises:
            UserError: a row cannot be trained in this world; the sentence names it.
        """
        shown = self.work / "views" / cell.name
        for row in self.missing(cell, rows):
            self._measure_row(cell, row, shown)
        shutil.rmtree(shown, ignore_errors=True)

    def _measure_row(self, cell: Cell, row: str, shown: Path) -> None:
        data, evaluation = cell.data(self.params.data), self.params.evaluation
        present = TrialParams(**{name: getattr(self.params, name) for name in TrialParams.model_fields})
        train, validation = _opened(data.model_dump_json(), self.threads)
        cache = UpstreamCache(self.work / "pipeline", self.work / "upstream", present, train, validation, self.device)
        tags = {"stage": "worlds", "world": cell.world, "row": row, "seed": str(cell.seed)}
        tags |= tracking.identity(self.device, train.identity)
        logged = flattened({"data": data.model_dump(), **present.model_dump()})
        with (
            atomic_folder(self.place(cell, row)) as folder,
            tracking.run(
                f"{row} · {cell.name}", self.params.tracking, tags, logged, folder / HISTORY, self.parent
            ) as record,
        ):
            if row == BASE:
                classifier = load(cache.base(present, cell.seed), self.device)
            else:
                started = trial(cache, row, present, data, self.threads, cell.seed)
                for epoch in started.epochs:
                    record(epoch.measures, epoch.number)
                classifier = started.classifier
            stored = evaluate(
                classifier, views(data, evaluation.corruptions, evaluation.severities, self.threads, shown)
            )
            assert data.code is not None
            measures = metrics(stored, data.code) | validated(classifier, validation)
            record({f"test/{name}": value for name, value in measures.items()}, 0)
            save_tensors(folder / SCORES, image_scores(stored, data), {})
            write_json(folder / MEASURES, measures)

    def measures(self, cell: Cell, row: str) -> dict[str, float]:
        """Every measure of a finished row."""
        return read_json(self.place(cell, row) / MEASURES, "make study or make map")

    def scores(self, cell: Cell, row: str) -> dict[str, np.ndarray]:
        """For each of IMAGE_MEASURES one number per test image of a finished row, whose mean is the measure."""
        return {name: tensor.numpy() for name, tensor in load_file(self.place(cell, row) / SCORES).items()}


def validated(classifier: Classifier, validation: Split) -> dict[str, float]:
    """The accuracy on validation images."""
    return {"accuracy/validation": accuracy(logits_of(classifier, validation), validation.labels)}


def image_scores(stored: Predictions, data: DataParams) -> dict[str, torch.Tensor]:
    """For each of IMAGE_MEASURES that was evaluated one number per test image, whose mean is the measure."""
    code = data.code
    assert code is not None
    weights, offset = completeness_weights(code)
    scores = {
        "completeness": sum(weight * stored.correct(view).double() for view, weight in weights.items()) - offset,
        "scene_gap": stored.correct("test").double() - stored.correct("scene_shift/independent").double(),
    }
    for family in ("corruptions", "renditions", "sketch"):
        if stored.family(family):
            scores[f"accuracy/{family}"] = torch.from_numpy(stored.correctness(family))
    return scores


@lru_cache(maxsize=2)
def _opened(data: str, threads: int) -> tuple[Split, Split]:
    """Training and validation split of a data set, given as JSON; those used last are kept in memory."""
    params = DataParams.model_validate_json(data)
    train, validation = (open_split(params, name, threads) for name in ("train", "validation"))
    return train, validation


def check_plan(work: Path, plan: dict[str, Any]) -> None:
    """Refuse to go on with results of other params or other code, and note these where there are none yet.

    Raises:
        UserError: the folder holds rows of other params or code; the sentence names the first difference.
    """
    now = flattened(plan) | {"code": code_fingerprint(__name__)}
    file = work / PLAN
    if file.is_file():
        before = read_json(file, "make study or make map")
        for name in sorted({*now, *before}):
            if now.get(name) != before.get(name):
                raise UserError(
                    f"{work} holds rows that were measured with {name} = {before.get(name)!r}, which is now "
                    f"{now.get(name)!r}: restore it, or remove the folder to begin anew"
                )
    work.mkdir(parents=True, exist_ok=True)
    write_json(file, now)
