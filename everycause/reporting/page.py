"""The written report: tables first, then the explanations' own measures, then the figures."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from codebirds.codes import Code
from codebirds.glyphs import CUES
from everycause.artifacts import read_json
from everycause.data.sources import DataParams
from everycause.data.split import Split
from everycause.evaluation.detection import Report
from everycause.explanation.filters import FilterBank, FilterParams, random_like
from everycause.explanation.masks import Masks
from everycause.models import Classifier, load, model_fingerprint
from everycause.reporting import explanations, figures, pictures, tables
from everycause.reporting import explanations as detections
from everycause.reporting import figures as robustness
from everycause.reporting import pictures as concepts
from everycause.reporting.explanations import faithfulness_table
from everycause.reporting.results import Results
from everycause.training.background import BackgroundParams
from everycause.training.rows import ROUNDS, ROWS

# MERGED DOC: """What the report says beyond accuracies: the explanations of the first seed, read from their artifacts, and every figure."""


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
            UserError: something is missing or belongs to another model; the sentence names the stage to run.
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
        self,
        results: Results,
        train: Split,
        data: DataParams,
        background: BackgroundParams,
        filters: FilterParams,
        corruptions: list[str],
        threads: int,
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
        some["filter_heat_map.png"] = concepts.heat_map(
            self.bank, train.class_names, filters.detection_frequency_threshold
        )
        if self.base.places():
            shown = list(range(min(concepts.CLASSES, train.num_classes)))
            some["top_filters.png"] = concepts.filters_on_images(
                self.base, self.bank, train, shown, filters.detection_frequency_threshold
            )
        some["detection.png"] = detections.detection_figure(self.detection)
        if bool(self.found.flipped.any()):
            some["gallery.png"] = pictures.counterfactual_gallery(train, self.found, self.base.statistics, background)
        some["contact_sheet.png"] = pictures.contact_sheet(train, data, corruptions, threads)
        return {name: some[name] for name in CAPTIONS if name in some}


def _epochs(history: Path) -> list[dict[str, float]]:
    """The epochs of a retraining."""
    return [json.loads(line) for line in history.read_text().splitlines()] if history.is_file() else []


Summary = dict[str, float]


def document(
    results: Results, explained: Explained, code: Code | None, frequency_threshold: float, figures: list[str]
) -> str:
    """The report in Markdown; `figures` are file names."""
    parts = ["# Results", "", *tables.header(results), "", tables.main_table(results), ""]
    if differences := tables.difference_table(results):
        parts += ["## Difference in accuracy from `continued`, in points", "", differences, ""]
    if significance := tables.significance_table(results):
        parts += [
            "## Probability of such differences under random signs (exact over seeds, Holm over splits)",
            "",
            significance,
            "",
        ]
    parts += ["## Calibration and class means", "", tables.calibration_table(results), ""]
    parts += ["## Rows", "", tables.meaning_table(results), ""]
    parts += ["## Masks of the base (first seed)", "", summary_table(explained.masks, MASKS), ""]
    if explained.faithfulness:
        parts += [
            "## What flips a prediction, selector by selector (first seed, validation images)",
            "",
            faithfulness_table(explained.faithfulness),
            "",
        ]
    parts += [
        *filters_of_the_base(explained, code, frequency_threshold),
        *terms_and_recalls(results, explained),
        *misclassifications(explained),
        "## Figures",
        "",
    ]
    for name in figures:
        parts += [f"![{CAPTIONS[name]}]({name})", "", f"*{CAPTIONS[name]}*", ""]
    return "\n".join(parts).rstrip() + "\n"


def filters_of_the_base(explained: Explained, code: Code | None, frequency_threshold: float) -> list[str]:
    """What the filters are, how good every generator of them is, and whether classes share them as they share their causes."""
    parts = [
        "## Filters of the base (first seed)",
        "",
        f"Filters are {explained.base.filters_are()}.",
        "",
        summary_table(explained.filters, FILTERS),
        "",
    ]
    parts += [
        "Generators of local filters, on correct and confident validation images, beside random sets of equal size:",
        "",
        concepts.generators_table(explained.filters),
        "",
    ]
    parts += [summary_table(explained.filters, INCORRECT), ""]
    if code is not None:
        filters = explained.bank.global_filters(frequency_threshold)
        shared = concepts.overlap_by_shared_parts(concepts.overlap(filters), code)
        chance = float(
            np.mean(list(concepts.overlap_by_shared_parts(concepts.overlap(random_like(filters, 0)), code).values()))
        )
        told = "; ".join(
            f"{value:.3f} with {count} part{'s' if count != 1 else ''} in common" for count, value in shared.items()
        )
        parts += [
            f"Overlap of the filters of two classes (shared over all, frequency above {frequency_threshold:g}): {told}; {chance:.3f} if they were random.",
            "",
        ]
    return parts


def terms_and_recalls(results: Results, explained: Explained) -> list[str]:
    """Do the filter terms move, and which classes won or lost?"""
    parts = []
    if terms := concepts.terms_table(explained.histories):
        parts += ["## Do the filter terms move? (first and last epoch; rows without them only watch)", "", terms, ""]
    if winners := concepts.winners_table(results, explained.base.class_names):
        parts += ["## Recall per class against `continued`, in points", "", winners, ""]
    return parts


def misclassifications(explained: Explained) -> list[str]:
    """Every detector on every split."""
    report = explained.detection
    return [
        "## Misclassifications of the base, told from its filters (first seed)", "", "Softmax and entropy flag as many validation images as the paper's rule (`filters`) does; in percent.", "",
        detections.detection_table(report), "", "New labels for what `filters` flags, among the likeliest five (images corrected and broken in brackets; `runner_up` always takes the second):", "",
        detections.relabelling_table(report), "", "Test split, class by class (predicted classes with errors or flags):", "", detections.classes_table(report), "",
    ]  # fmt: skip


MASKS = {
    "screened": "images looked at", "misclassified": "… predicted wrongly, so not searched", "not_confident": "… not confident enough", "searched": "images searched", "flip_rate": "share whose prediction flips", "regions_at_flip": "regions at the flip",
    "area_at_flip": "share of the area at the flip", "forwards_per_image": "forward passes per image", "share_on_parts": "share of the mask on parts",
    "random/share_on_parts": "… of random regions", "flip_distance": "parts destroyed at the flip", "random/flip_distance": "… by random regions",
    "code_distance": "parts that must go before a complete classifier may flip", "pointing_game": "first region touches a part",
}  # fmt: skip
FILTERS = {
    "filters": "filters of the layer", "filters_per_class": "global filters per class", "filters_per_class_detection": "… above the detection threshold",
    "smallest_support": "images behind the least supported class",
}  # fmt: skip
INCORRECT = {
    "minimum_incorrect/filters_per_image": "minimum incorrect filters per image (towards the runner-up)", "minimum_incorrect/reach_rate": "runner-up reached",
    "minimum_incorrect/random/reach_rate": "… with the same amounts on random filters",
}  # fmt: skip


def summary_table(summary: Summary, names: dict[str, str]) -> str:
    """A two-column table of the measures that there are."""
    return tables.markdown(
        ["measure", "value"],
        [
            [label, f"{summary[key]:.3g}" if summary[key] < 100 else f"{summary[key]:.0f}"]
            for key, label in names.items()
            if key in summary
        ],
    )
