"""What the report says beyond accuracies: the explanations of the first seed, read from their artifacts, and every figure."""

import json
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from everycause.artifact import read_json
from everycause.data.dataset import DataParams
from everycause.data.glyphs import CUES
from everycause.data.split import Split
from everycause.evaluation.detection import Report
from everycause.explanation.filters import FilterBank, FilterParams
from everycause.explanation.masks import Masks
from everycause.model import Classifier, load, model_fingerprint
from everycause.reporting import concepts, doubts, explanations, figures, pictures, robustness
from everycause.reporting.results import Results
from everycause.training.fill import FillParams
from everycause.training.rows import ROUNDS, ROWS

HISTORY = "history.jsonl"
CAPTIONS = {
    "completeness.png": "Accuracy after erasures: a classifier that has learned every cause follows the code's optimum.",
    "reliance.png": "Which parts a classifier's accuracy rests on (exact Shapley values over all subsets).",
    "scene_gap.png": "What the scene is worth to each row.",
    "accuracies.png": "Accuracy on every split.",
    "differences.png": "Differences from `continued` with 95 % intervals over (seed, test image), in points.",
    "shift_scatter.png": "Accuracy under shift against accuracy in distribution, a point per row.",
    "corruptions.png": "Accuracy per corruption and severity (regenerated at the constants of this image size: not ImageNet-C, no mCE).",
    "rounds.png": "The rounds of `masks_rounds`: what the model relies on, and what it takes to flip it.",
    "faithfulness.png": "What flips a prediction: every selector, the base and retrained models.",
    "filter_terms.png": "The filter terms, epoch by epoch, of rows that minimize them and of rows that only watch them.",
    "filter_heat_map.png": "Which class needs which filter, and how far classes share them.",
    "top_filters.png": "Images of three classes, their filters' class activation map, and their top filters (share of the class's images that need each).",
    "detection.png": "Misclassifications told from filters, from random filters, and from the softmax.",
    "gallery.png": "Training images, the regions whose removal flips the base, and one counterfactual image of each.",
    "contact_sheet.png": "The same test birds in every split.",
}
"""The figures in the order of the report."""


@dataclass(frozen=True)
class Explained:
    """What was found out about the base and its retrained rows, for one seed."""

    base: Classifier
    filters: dict[str, float]
    bank: FilterBank
    masks: dict[str, float]
    found: Masks
    faithfulness: explanations.Faithfulness
    rounds: list[dict[str, float]]
    detection: Report
    histories: dict[str, list[dict[str, float]]]
    """Row → epochs."""

    @classmethod
    def load(cls, artifacts: Path, seed: int, rows: tuple[str, ...], train: Split) -> "Explained":
        """Everything below artifacts/ but the evaluations.

        Raises:
            ValueError: something is missing or belongs to another model; the sentence names the stage to run.
        """

        def place(kind: str, variant: str) -> Path:
            return artifacts / kind / variant / f"seed-{seed}"

        base = place("models", "base")
        model = model_fingerprint(base)
        filters, masks = place("filters", "minimum_correct"), place("masks", "counterfactual")
        return cls(
            load(base), read_json(filters / "summary.json", "accumulate_filters"), FilterBank.load(filters, model),
            read_json(masks / "summary.json", "generate_masks"), Masks.load(masks, model, train.identity),
            read_json(place("faithfulness", "all") / "faithfulness.json", "measure_faithfulness"),
            read_json(place("models", ROUNDS) / "rounds.json", "retrain_rounds"), read_json(place("detection", "base") / "detection.json", "detect_misclassifications"),
            {row: _epochs(place("models", row) / HISTORY) for row in rows if row in ROWS},
        )  # fmt: skip

    def drawn(
        self, results: Results, train: Split, data: DataParams, fill: FillParams, filters: FilterParams, corruptions: list[str], threads: int
    ) -> dict[str, Figure]:
        """Every figure that these data and this model allow, by file name."""
        code, parts = data.code, []
        some = {"accuracies.png": figures.accuracies(results)}
        if results.has("accuracy/corruptions"):
            some["corruptions.png"] = robustness.corruption_figure(results)
        some["shift_scatter.png"] = robustness.scatter_figure(results)
        if (differences := robustness.difference_figure(results)) is not None:
            some["differences.png"] = differences
        if code is not None:
            parts = [cue.name for cue in CUES[: code.length]]
            some |= figures.causal_figures(results, code, parts)
        some["rounds.png"] = explanations.rounds_figure(self.rounds, parts, code.distance if code is not None else None)
        if self.faithfulness:
            some["faithfulness.png"] = explanations.faithfulness_figure(self.faithfulness)
        if (terms := concepts.terms_figure(self.histories)) is not None:
            some["filter_terms.png"] = terms
        some["filter_heat_map.png"] = concepts.heat_map(self.bank, train.class_names, filters.detection_frequency_threshold)
        if self.base.places():
            shown = list(range(min(concepts.CLASSES, train.num_classes)))
            some["top_filters.png"] = concepts.filters_on_images(self.base, self.bank, train, shown, filters.detection_frequency_threshold)
        some["detection.png"] = doubts.detection_figure(self.detection)
        if bool(self.found.flipped.any()):
            some["gallery.png"] = pictures.counterfactual_gallery(train, self.found, self.base.statistics, fill)
        some["contact_sheet.png"] = pictures.contact_sheet(train, data, corruptions, threads)
        return {name: some[name] for name in CAPTIONS if name in some}


def _epochs(history: Path) -> list[dict[str, float]]:
    """The epochs of a retraining."""
    return [json.loads(line) for line in history.read_text().splitlines()] if history.is_file() else []
