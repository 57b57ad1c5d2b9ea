"""The written report: tables first, then the explanations' own measures, then the figures."""

import numpy as np

from everycause.data.codes import Code
from everycause.explanation.filters import random_like
from everycause.reporting import concepts, doubts, tables
from everycause.reporting.explanations import faithfulness_table
from everycause.reporting.gathered import CAPTIONS, Explained
from everycause.reporting.results import Results

Summary = dict[str, float]


def document(results: Results, explained: Explained, code: Code | None, frequency_threshold: float, figures: list[str]) -> str:
    """The report in Markdown; `figures` are file names."""
    parts = ["# Results", "", *tables.header(results), "", tables.main_table(results), ""]
    if differences := tables.difference_table(results):
        parts += ["## Difference in accuracy from `continued`, in points", "", differences, ""]
    if significance := tables.significance_table(results):
        parts += ["## Probability of such differences under random signs (exact over seeds, Holm over splits)", "", significance, ""]
    parts += ["## Calibration and class means", "", tables.calibration_table(results), ""]
    parts += ["## Rows", "", tables.meaning_table(results), ""]
    parts += ["## Masks of the base (first seed)", "", summary_table(explained.masks, MASKS), ""]
    if explained.faithfulness:
        parts += ["## What flips a prediction, selector by selector (first seed, validation images)", "", faithfulness_table(explained.faithfulness), ""]
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
    parts = ["## Filters of the base (first seed)", "", f"Filters are {explained.base.filters_are()}.", "", summary_table(explained.filters, FILTERS), ""]
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
        chance = float(np.mean(list(concepts.overlap_by_shared_parts(concepts.overlap(random_like(filters, 0)), code).values())))
        told = "; ".join(f"{value:.3f} with {count} part{'s' if count != 1 else ''} in common" for count, value in shared.items())
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
        doubts.detection_table(report), "", "New labels for what `filters` flags, among the likeliest five (images corrected and broken in brackets; `runner_up` always takes the second):", "",
        doubts.relabelling_table(report), "", "Test split, class by class (predicted classes with errors or flags):", "", doubts.classes_table(report), "",
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
        [[label, f"{summary[key]:.3g}" if summary[key] < 100 else f"{summary[key]:.0f}"] for key, label in names.items() if key in summary],
    )
