"""Train and measure one row in one cell, and keep what was measured: a study that is stopped goes on.

The base, the filters and the masks of a cell are made once and kept beside the results (UpstreamCache). Nothing is
selected here: every row is measured on the test split and all shifted ones after its last epoch.
"""

import shutil
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from everycause import tracking
from everycause.artifacts import (
    HISTORY,
    atomic_folder,
    code_fingerprint,
    fingerprint,
    read_json,
    save_tensors,
    write_json,
)
from everycause.data.shifts import views
from everycause.data.sources import DataParams, open_split
from everycause.data.split import Split
from everycause.device import cpu_name, device_name
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
from everycause.worlds.cells import BASE, Cell, World

MEASURES, SCORES, MACHINE, PLAN = "measures.json", "scores.safetensors", "machine.json", "plan.json"
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
        for row in self.missing(cell, rows):
            self._measure_row(cell, row)

    def forget(self, where: World) -> None:
        """Remove the shifted test sets of a world, which all its cells have in common."""
        shutil.rmtree(self._views(where), ignore_errors=True)

    def _views(self, where: World) -> Path:
        return self.work / "views" / where.images.name

    def _measure_row(self, cell: Cell, row: str) -> None:
        data, evaluation = cell.data(self.params.data), self.params.evaluation
        present = TrialParams(**{name: getattr(self.params, name) for name in TrialParams.model_fields})
        train, validation = _opened(data.model_dump_json(), cell.where.label_noise, self.threads)
        cache = UpstreamCache(self.work / "pipeline", self.work / "upstream", present, train, validation, self.device)
        tags = {"stage": "worlds", "world": cell.where.name, "row": row, "seed": str(cell.seed)}
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
                classifier,
                views(data, evaluation.corruptions, evaluation.severities, self.threads, self._views(cell.where)),
                precision=evaluation.precision,
            )
            assert data.code is not None
            measures = metrics(stored, data.code) | validated(classifier, validation)
            record({f"test/{name}": value for name, value in measures.items()}, 0)
            write_json(folder / MACHINE, {"device": device_name(self.device), "processor": cpu_name()})
            save_tensors(folder / SCORES, image_scores(stored, data), {})
            write_json(folder / MEASURES, measures)

    def measures(self, cell: Cell, row: str) -> dict[str, float]:
        """Every measure of a finished row."""
        return read_json(self.place(cell, row) / MEASURES, "make study, make map or make noise")

    def machine(self, cell: Cell, row: str) -> str:
        """What a finished row was trained and measured on: the GPU, or else the processor."""
        found = read_json(self.place(cell, row) / MACHINE, "make study, make map or make noise")
        return found["processor"] if found["device"] == "cpu" else found["device"]

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
def _opened(data: str, label_noise: float, threads: int) -> tuple[Split, Split]:
    """Training and validation split of a data set, given as JSON; those used last are kept in memory."""
    params = DataParams.model_validate_json(data)
    train, validation = (open_split(params, name, threads) for name in ("train", "validation"))
    return with_noise(train, label_noise), validation


def with_noise(split: Split, share: float) -> Split:
    """A split in which that share of the images has the label of another class, whichever with equal probability.

    The same images are chosen each time; those of a smaller share are among those of a larger one.
    """
    count = round(share * len(split))
    if count == 0:
        return split
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(split), generator=generator)[:count]
    other = torch.randint(1, split.num_classes, (len(split),), generator=generator)
    labels = split.labels.clone()
    labels[chosen] = (labels[chosen] + other[chosen]) % split.num_classes
    return replace(split, labels=labels, identity=fingerprint(split.identity, f"label noise {share}"))


def check_plan(work: Path, plan: dict[str, Any]) -> None:
    """Refuse to go on with results of other params or other code, and note these where there are none yet.

    Raises:
        UserError: the folder holds rows of other params or code; the sentence names the first difference.
    """
    now = flattened(plan) | {"code": code_fingerprint(__name__)}
    file = work / PLAN
    if file.is_file():
        before = read_json(file, "make study, make map or make noise")
        for name in sorted({*now, *before}):
            if now.get(name) != before.get(name):
                raise UserError(
                    f"{work} holds rows that were measured with {name} = {before.get(name)!r}, which is now "
                    f"{now.get(name)!r}: restore it, or remove the folder to begin anew"
                )
    work.mkdir(parents=True, exist_ok=True)
    write_json(file, now)
